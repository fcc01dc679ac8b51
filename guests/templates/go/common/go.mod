module {{name}}

go 1.24

require millrace v0.0.0

replace millrace => ./sdk
