// Package run is how package millracetest calls handlers: package millrace fills it in when it starts.
package run

import "millrace/internal/columns"

// Answer runs the registered processor; unavailable says why the batch cannot be processed now.
var Answer func(input columns.Batch, process any) (answer columns.Answer, unavailable string, isUnavailable bool)

// Assign runs a partitioner.
var Assign func(input columns.Batch, partitions int, choose any) []int
