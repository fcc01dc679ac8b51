package main

import (
	"testing"

	"millrace/millracetest"
)

func TestKeysOfOneRegionShareAPartition(t *testing.T) {
	of := func(key string) int { return millracetest.Partition(t, choose, 4, millracetest.Message{Key: key}) }
	if first, second := of("eu-1"), of("eu-2"); first != second {
		t.Errorf("eu-1 is in partition %d, eu-2 in %d", first, second)
	}
	if eu, us := of("eu-1"), of("us-1"); eu == us {
		t.Errorf("both regions are in partition %d", eu)
	}
}
