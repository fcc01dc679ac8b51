// Package views has the state of processors, for the component of a route: what is committed, to read only.
package views

import (
	"encoding/binary"
	"fmt"
	"slices"

	"millrace/internal/columns"
	"millrace/internal/host"
)

// View is the state of a processor.
type View struct {
	Processor string
	// Topic is empty for a processor that reads only one.
	Topic string
}

// Of is the state of a processor that reads one topic.
func Of(processor string) View { return View{Processor: processor} }

// NotGranted is the error of a processor whose state the route is not granted.
type NotGranted struct{ Reason string }

// Refused is the error of a processor, topic or partition that does not exist, or of a call that exceeds a bound.
type Refused struct{ Reason string }

// Unavailable is an error after which a later call may succeed.
type Unavailable struct{ Reason string }

// Error is the reason.
func (e *NotGranted) Error() string { return e.Reason }

// Error is the reason.
func (e *Refused) Error() string { return e.Reason }

// Error is the reason.
func (e *Unavailable) Error() string { return e.Reason }

// Partitions is the number of partitions.
func (v View) Partitions() (int, error) {
	partitions, problem, why := host.ViewPartitions(v.Processor, v.Topic)
	return partitions, errorOf(problem, why)
}

// Get is the value of a key in the partition that messages with this key go to; nil if it has none.
func (v View) Get(key []byte) ([]byte, error) {
	values, err := v.get(-1, [][]byte{key})
	if err != nil {
		return nil, err
	}
	return values[0], nil
}

// Number is the number of a key, as state.Add stores it; 0 if it has none.
func (v View) Number(key []byte) (int64, error) {
	value, err := v.Get(key)
	switch {
	case err != nil || value == nil:
		return 0, err
	case len(value) != 8:
		return 0, fmt.Errorf("the value of the key %q has %d bytes, and a number has 8", key, len(value))
	}
	return int64(binary.LittleEndian.Uint64(value)), nil
}

// GetMany are the values of keys, in order, each in the partition that messages with this key go to.
func (v View) GetMany(keys [][]byte) ([][]byte, error) { return v.get(-1, keys) }

// GetManyIn are the values of keys in one partition, in order.
func (v View) GetManyIn(partition int, keys [][]byte) ([][]byte, error) {
	return v.get(max(0, partition), keys)
}

func (v View) get(partition int, keys [][]byte) ([][]byte, error) {
	var data []byte
	var spans []uint32
	for _, key := range keys {
		spans = append(spans, uint32(len(data)), uint32(len(key)))
		data = append(data, key...)
	}
	page, problem, why := host.ViewGet(v.Processor, v.Topic, partition, data, spans)
	if err := errorOf(problem, why); err != nil {
		return nil, err
	}
	values := make([][]byte, len(keys))
	for index := range values {
		values[index] = part(page.Data, page.Values, index)
	}
	return values, nil
}

// Entry is a key and its value.
type Entry struct{ Key, Value []byte }

// Entries are in ascending order of keys.
type Entries struct {
	Entries []Entry
	// HasMore is whether there may be more after the last one.
	HasMore bool
}

// Scan are entries of a partition whose keys begin with prefix and come after after (nil: from the first).
func (v View) Scan(partition int, prefix, after []byte, max int) (Entries, error) {
	page, problem, why := host.ViewScan(v.Processor, v.Topic, partition, prefix, after, uint32(max))
	if err := errorOf(problem, why); err != nil {
		return Entries{}, err
	}
	entries := Entries{HasMore: page.HasMore}
	for index := range len(page.Keys) / 2 {
		entries.Entries = append(entries.Entries, Entry{part(page.Data, page.Keys, index), part(page.Data, page.Values, index)})
	}
	return entries, nil
}

func part(data []byte, spans []uint32, index int) []byte {
	start, length := spans[index*2], spans[index*2+1]
	if length == columns.None {
		return nil
	}
	return slices.Clone(data[start : start+length])
}

func errorOf(problem host.Problem, why string) error {
	switch problem {
	case host.Fine:
		return nil
	case host.NotGranted:
		return &NotGranted{why}
	case host.Unavailable:
		return &Unavailable{why}
	default:
		return &Refused{why}
	}
}
