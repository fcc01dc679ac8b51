// {{name}} gives messages whose keys begin with the same region the same partition.
package main

import (
	"bytes"
	"hash/fnv"

	"millrace"
)

func init() { millrace.Partitioner(choose) }

func main() {}

func choose(m *millrace.Message, partitions int) int {
	region, _, _ := bytes.Cut(m.Key, []byte("-"))
	hash := fnv.New32a()
	hash.Write(region)
	return int(hash.Sum32() % uint32(partitions))
}
