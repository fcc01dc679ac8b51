//go:build !wasip1

// Package host calls the host. Without WASM there is none: state, settings, secrets, metrics and log lines are in memory, for tests (package millracetest).
package host

import (
	"encoding/binary"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"

	"millrace/internal/columns"
)

// Line is a log line.
type Line struct {
	Level uint8
	Text  string
}

// Write is a change of state by a message.
type Write struct {
	Message uint32
	Key     string
}

// Memory is what a test gives and sees.
type Memory struct {
	State   map[string][]byte
	Config  map[string]string
	Secrets map[string][]byte
	// Counters and gauges by name and labels, as in Prometheus: handled{language="go"}.
	Metrics map[string]float64
	Lines   []Line
	// Which messages have changed state in this call.
	Writes []Write
	// The state of processors that a route may read, by processor.
	Views map[string]map[string][]byte
	// What a route has sent, with the topics.
	Sent   []Outgoing
	Topics []string
	// How every call that sends ends.
	SendProblem Problem
	SendWhy     string

	next map[string]uint64
	once map[string]once
}

// once is a call that sent with a key.
type once struct {
	messages Outgoing
	sent     Sent
}

// NewMemory is empty.
func NewMemory() *Memory {
	return &Memory{
		State: map[string][]byte{}, Config: map[string]string{}, Secrets: map[string][]byte{}, Metrics: map[string]float64{},
		Views: map[string]map[string][]byte{}, next: map[string]uint64{}, once: map[string]once{},
	}
}

// Current is what the functions of this package use. One test at a time: handlers have no other way to name their host.
var Current = NewMemory()

// Log writes a line.
func Log(level uint8, message string) {
	Current.Lines = append(Current.Lines, Line{level, ValidText(message)})
}

// Config is the value of a key.
func Config(key string) (string, bool) {
	value, ok := Current.Config[key]
	return value, ok
}

// ConfigAll calls `each` for all keys, in ascending order.
func ConfigAll(each func(key, value string)) {
	for _, key := range sorted(Current.Config) {
		each(key, Current.Config[key])
	}
}

func sorted[V any](values map[string]V) []string {
	keys := make([]string, 0, len(values))
	for key := range values {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// Secret is the value of a secret, or what is wrong. A secret without a value is one that the host does not have now.
func Secret(name string) (value []byte, problem SecretProblem, why string) {
	value, ok := Current.Secrets[name]
	switch {
	case !ok:
		return nil, SecretNotGranted, "the secret " + name + " is not granted"
	case value == nil:
		return nil, SecretUnavailable, "the secret " + name + " has no value now"
	}
	return slices.Clone(value), SecretFound, ""
}

func series(name string, labels []Label) string {
	if len(labels) == 0 {
		return name
	}
	parts := make([]string, len(labels))
	for index, label := range labels {
		parts[index] = label.Name + `="` + label.Value + `"`
	}
	slices.Sort(parts)
	return name + "{" + strings.Join(parts, ",") + "}"
}

// CounterAdd adds to a counter.
func CounterAdd(name string, delta uint64, labels []Label) {
	Current.Metrics[series(name, labels)] += float64(delta)
}

// GaugeSet sets a gauge.
func GaugeSet(name string, value float64, labels []Label) {
	Current.Metrics[series(name, labels)] = value
}

// HistogramObserve records a value: the last one is kept.
func HistogramObserve(name string, value float64, labels []Label) {
	Current.Metrics[series(name, labels)] = value
}

func spanOf(data []byte, spans []uint32, index int) []byte {
	start, length := spans[index*2], spans[index*2+1]
	if length == columns.None {
		return nil
	}
	return data[start : start+length]
}

func appendSpan(data []byte, spans []uint32, bytes []byte) ([]byte, []uint32) {
	if bytes == nil {
		return data, append(spans, 0, columns.None)
	}
	return append(data, bytes...), append(spans, uint32(len(data)), uint32(len(bytes)))
}

// StateGet returns the values of keys.
func StateGet(data []byte, keys []uint32) (found []byte, values []uint32) {
	found = []byte{}
	for index := range len(keys) / 2 {
		found, values = appendSpan(found, values, Current.State[string(spanOf(data, keys, index))])
	}
	return found, values
}

// StateSet sets keys.
func StateSet(data []byte, keys, values []uint32, _ []uint64, messages []uint32) (full string, ok bool) {
	for index, message := range messages {
		key := string(spanOf(data, keys, index))
		Current.Writes = append(Current.Writes, Write{message, key})
		if value := spanOf(data, values, index); value != nil {
			Current.State[key] = slices.Clone(value)
		} else {
			delete(Current.State, key)
		}
	}
	return "", true
}

// StateAdd adds to numbers.
func StateAdd(data []byte, keys []uint32, deltas []int64, _ []uint64, messages []uint32) (sums []int64, full string, ok bool) {
	for index, message := range messages {
		key, delta, sum := string(spanOf(data, keys, index)), int64(1), int64(0)
		if deltas != nil {
			delta = deltas[index]
		}
		if value, ok := Current.State[key]; ok {
			if len(value) != 8 {
				panic("state: add: the value of the key " + key + " is not a number of eight bytes")
			}
			sum = int64(binary.LittleEndian.Uint64(value))
		}
		switch {
		case delta > 0 && sum > math.MaxInt64-delta:
			sum = math.MaxInt64
		case delta < 0 && sum < math.MinInt64-delta:
			sum = math.MinInt64
		default:
			sum += delta
		}
		Current.State[key] = binary.LittleEndian.AppendUint64(nil, uint64(sum))
		Current.Writes = append(Current.Writes, Write{message, key})
		sums = append(sums, sum)
	}
	return sums, "", true
}

// StateScan lists entries.
func StateScan(prefix, after []byte, max uint32) (data []byte, keys, values []uint32) {
	return scan(Current.State, prefix, after, max)
}

func scan(state map[string][]byte, prefix, after []byte, max uint32) (data []byte, keys, values []uint32) {
	for _, key := range sorted(state) {
		if uint32(len(keys)/2) == max {
			break
		}
		if !strings.HasPrefix(key, string(prefix)) || after != nil && key <= string(after) {
			continue
		}
		data, keys = appendSpan(data, keys, []byte(key))
		data, values = appendSpan(data, values, state[key])
	}
	return data, keys, values
}

// Send keeps messages for the test.
func Send(topic string, messages *Outgoing, key string, hasKey bool) (Sent, Problem, string) {
	if Current.SendProblem != Fine {
		return Sent{}, Current.SendProblem, Current.SendWhy
	}
	name := topic + "\n" + key
	if before, ok := Current.once[name]; ok && hasKey {
		if !reflect.DeepEqual(before.messages, *messages) {
			return Sent{}, KeyReused, "the key was used before, for other messages"
		}
		before.sent.Repeated = true
		return before.sent, Fine, ""
	}
	sent := Sent{}
	for index, partition := range messages.Partitions {
		if partition == columns.None {
			partition = 0
		}
		offset := Later
		if messages.Times[index*2+1] == 0 {
			place := fmt.Sprintf("%s/%d", topic, partition)
			offset = Current.next[place]
			Current.next[place]++
		}
		sent.Partitions, sent.Offsets = append(sent.Partitions, partition), append(sent.Offsets, offset)
	}
	if hasKey {
		Current.once[name] = once{*messages, sent}
	}
	Current.Sent, Current.Topics = append(Current.Sent, *messages), append(Current.Topics, topic)
	return sent, Fine, ""
}

// Settled says that every message is.
func Settled(_, _ string, _ Sent, _ uint64) (bool, Problem, string) { return true, Fine, "" }

func view(processor string) (map[string][]byte, Problem, string) {
	state, ok := Current.Views[processor]
	if !ok {
		return nil, NotGranted, "the state of processor " + processor + " is not granted to this route"
	}
	return state, Fine, ""
}

// ViewPartitions is 1: a test has one partition.
func ViewPartitions(processor, _ string) (int, Problem, string) {
	_, problem, why := view(processor)
	return 1, problem, why
}

// ViewGet returns the values of keys.
func ViewGet(processor, _ string, _ int, data []byte, keys []uint32) (Page, Problem, string) {
	state, problem, why := view(processor)
	page := Page{Data: []byte{}}
	for index := range len(keys) / 2 {
		page.Data, page.Values = appendSpan(page.Data, page.Values, state[string(spanOf(data, keys, index))])
	}
	return page, problem, why
}

// ViewScan lists entries.
func ViewScan(processor, _ string, partition int, prefix, after []byte, max uint32) (page Page, problem Problem, why string) {
	state, problem, why := view(processor)
	if problem == Fine && partition != 0 {
		return page, Refused, fmt.Sprintf("there is no partition %d; a test has only partition 0", partition)
	}
	page.Data, page.Keys, page.Values = scan(state, prefix, after, max)
	_, more, _ := scan(state, prefix, after, max+1)
	page.HasMore = len(more) > len(page.Keys)
	return page, problem, why
}
