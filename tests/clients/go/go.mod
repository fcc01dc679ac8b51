module millrace.test/client

go 1.22
