// Package state has the keys and values of the processor, in the partition that its batch comes from. Writes are committed together with the outputs of the message that they
// belong to, and discarded if it fails. A key or a value beyond its bound is a trap.
//
// The cost is in the number of calls to the host, not of keys: GetMany, AddKeys and Writes read, add and write for a whole batch at once, or for 10,000 keys at once if there are more.
// If a later one of several such calls finds no room, what earlier ones wrote stays, each for its message: retry or reject the messages, and their writes are discarded.
package state

import (
	"millrace"
	"millrace/internal/columns"
	"millrace/internal/host"
)

// Keys that one call to the host accepts.
const callKeysMax = 10_000

// Bytes that Writes passes to one call: half of the maximum, so that there is room for a last large value.
const callBytes = 4 << 20

// Full is the error of a write for which there is no room; nothing was written.
type Full struct {
	// Reason says which bound was reached.
	Reason string
}

// Error is the reason.
func (f *Full) Error() string { return f.Reason }

func fullError(reason string, ok bool) error {
	if ok {
		return nil
	}
	return &Full{reason}
}

// Get is the value of a key; nil if it has none.
func Get(key []byte) []byte {
	data, values := host.StateGet(key, []uint32{0, uint32(len(key))})
	return span(data, values, 0)
}

// GetMany are the values of these keys, in the same order.
func GetMany(keys [][]byte) [][]byte {
	found := make([][]byte, 0, len(keys))
	for len(keys) > 0 {
		some := keys[:min(len(keys), callKeysMax)]
		keys = keys[len(some):]
		var data []byte
		spans := make([]uint32, 0, len(some)*2)
		for _, key := range some {
			spans = append(spans, uint32(len(data)), uint32(len(key)))
			data = append(data, key...)
		}
		values, valueSpans := host.StateGet(data, spans)
		for index := range some {
			found = append(found, span(values, valueSpans, index))
		}
	}
	return found
}

// span is a copy of a span's bytes; nil for a null span.
func span(data []byte, spans []uint32, index int) []byte {
	start, length := spans[index*2], spans[index*2+1]
	if length == columns.None {
		return nil
	}
	return append([]byte{}, data[start:start+length]...)
}

// Forever is the time to live of what does not expire.
const Forever = ^uint64(0)

// Set sets a key on behalf of this message. The error is a *Full.
func Set(m *millrace.Message, key, value []byte) error { return write(m, key, value, false, nil) }

// SetFor sets a key, on behalf of this message, to a value that expires after this many milliseconds. The error is a *Full.
func SetFor(m *millrace.Message, key, value []byte, ttlMs uint64) error {
	return write(m, key, value, false, []uint64{ttlMs})
}

// Delete removes a key on behalf of this message. Removing never fails for lack of room.
func Delete(m *millrace.Message, key []byte) { _ = write(m, key, nil, true, nil) }

func write(m *millrace.Message, key, value []byte, remove bool, ttlMs []uint64) error {
	data := append(append(make([]byte, 0, len(key)+len(value)), key...), value...)
	length := uint32(len(value))
	if remove {
		length = columns.None
	}
	full, ok := host.StateSet(data, []uint32{0, uint32(len(key))}, []uint32{uint32(len(key)), length}, ttlMs, []uint32{uint32(m.Index)})
	return fullError(full, ok)
}

// Add adds to the number of a key, on behalf of this message, and returns the sum. An absent key counts as 0; a value that does not have eight bytes is a trap. The error is a *Full.
func Add(m *millrace.Message, key []byte, delta int64) (int64, error) {
	sums, full, ok := host.StateAdd(key, []uint32{0, uint32(len(key))}, []int64{delta}, nil, []uint32{uint32(m.Index)})
	if !ok {
		return 0, &Full{full}
	}
	return sums[0], nil
}

// AddKeys has each message of the batch add 1 to the number of its own key, or of the empty key if it has none; it returns the sum after each message. The error is a *Full; then there are no sums.
func AddKeys(batch *millrace.Batch) ([]int64, error) { return AddDeltas(batch, nil) }

// AddDeltas is AddKeys with what each message adds: one number for each message of the batch.
func AddDeltas(batch *millrace.Batch, deltas []int64) ([]int64, error) {
	count := batch.Len()
	if deltas != nil && len(deltas) != count {
		panic("millrace: AddDeltas: give one number for each message")
	}
	sums := make([]int64, 0, count)
	for start := 0; start < count; start += callKeysMax {
		end := min(count, start+callKeysMax)
		data := make([]byte, 0, 16*(end-start))
		spans := make([]uint32, 0, 2*(end-start))
		messages := make([]uint32, 0, end-start)
		for index := start; index < end; index++ {
			key := batch.Message(index).Key
			spans = append(spans, uint32(len(data)), uint32(len(key)))
			data = append(data, key...)
			messages = append(messages, uint32(index))
		}
		var some []int64
		if deltas != nil {
			some = deltas[start:end]
		}
		added, full, ok := host.StateAdd(data, spans, some, nil, messages)
		if !ok {
			return nil, &Full{full}
		}
		sums = append(sums, added...)
	}
	return sums, nil
}

// Entry is a key and its value.
type Entry struct{ Key, Value []byte }

// Scan lists the entries whose keys begin with the prefix and come after `after` (nil: from the first), in ascending order of keys: at most max, or fewer if they have many
// bytes. No entries are the end.
func Scan(prefix, after []byte, max int) []Entry {
	data, keys, values := host.StateScan(prefix, after, uint32(max))
	entries := make([]Entry, len(keys)/2)
	for index := range entries {
		entries[index] = Entry{span(data, keys, index), span(data, values, index)}
	}
	return entries
}

// Writes are keys to set and to delete, each for its message, in as few calls to the host as possible.
type Writes struct{ calls []call }

type call struct {
	data                   []byte
	keys, values, messages []uint32
	ttlMs                  []uint64
}

// Set sets a key on behalf of this message.
func (w *Writes) Set(m *millrace.Message, key, value []byte) { w.add(m, key, value, false, Forever) }

// SetFor sets a key, on behalf of this message, to a value that expires after this many milliseconds.
func (w *Writes) SetFor(m *millrace.Message, key, value []byte, ttlMs uint64) {
	w.add(m, key, value, false, ttlMs)
}

// Delete removes a key on behalf of this message.
func (w *Writes) Delete(m *millrace.Message, key []byte) { w.add(m, key, nil, true, Forever) }

func (w *Writes) add(m *millrace.Message, key, value []byte, remove bool, ttlMs uint64) {
	if count := len(w.calls); count == 0 || len(w.calls[count-1].messages) == callKeysMax || len(w.calls[count-1].data) >= callBytes {
		w.calls = append(w.calls, call{})
	}
	c := &w.calls[len(w.calls)-1]
	c.keys = append(c.keys, uint32(len(c.data)), uint32(len(key)))
	c.data = append(c.data, key...)
	length := uint32(len(value))
	if remove {
		length = columns.None
	}
	c.values = append(c.values, uint32(len(c.data)), length)
	c.data = append(c.data, value...)
	c.messages = append(c.messages, uint32(m.Index))
	c.ttlMs = append(c.ttlMs, ttlMs)
}

// Write writes everything, in the order in which it was added. The error is a *Full; writes of earlier calls to the host are then kept for their messages.
func (w *Writes) Write() error {
	for _, c := range w.calls {
		if full, ok := host.StateSet(c.data, c.keys, c.values, c.ttlMs, c.messages); !ok {
			return &Full{full}
		}
	}
	w.calls = nil
	return nil
}
