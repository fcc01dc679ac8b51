// Package millracetest passes messages to a handler in a plain go test, without WASM and without a host, and shows what became of them.
//
//	func TestWhoeverHasANameIsGreeted(t *testing.T) {
//		tester := millracetest.New(t, greet)
//		run := tester.Run(millracetest.Message{Key: "1", Value: "Ada"}, millracetest.Message{Key: "2", NoValue: true})
//		if got := run.Output().Value; got != "hello, Ada" {
//			t.Errorf("got %q", got)
//		}
//		if got := run.Said(1); got != millracetest.Rejected("no-value", "there is nobody to greet") {
//			t.Errorf("got %v", got)
//		}
//	}
//
// A Tester keeps state from one batch to the next, as a host does for one partition, and discards what messages wrote that were retried or rejected: the handler is called again
// without them. Tests that share a handler's host must not run in parallel.
package millracetest

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"
	"testing"

	"millrace/internal/columns"
	"millrace/internal/host"
	"millrace/internal/run"

	// It tells package run how handlers are called.
	"millrace"
)

// Message is a message for the handler.
type Message struct {
	Key, Value string
	// NoKey and NoValue are for messages that lack them.
	NoKey, NoValue bool
	Headers        []Header
	// Offset counts on from the last message if it is 0; Attempt is 1 if it is 0.
	Offset, Timestamp uint64
	Attempt           int
}

// Header is a name and a value.
type Header struct{ Name, Value string }

// Output is what the handler sent, including everything that it kept of its message.
type Output struct {
	Key, Value     string
	NoKey, NoValue bool
	Headers        []Header
	// Topic is empty for the default output.
	Topic string
	// Partition is -1 if the topic's partitioner chooses.
	Partition int
	// Timestamp is that of the message unless the handler replaced it; DeliverAt is 0 for "at once".
	Timestamp, DeliverAt uint64
}

// Header is the value of the last header with this name, and whether there is one.
func (o Output) Header(name string) (string, bool) {
	for index := len(o.Headers) - 1; index >= 0; index-- {
		if o.Headers[index].Name == name {
			return o.Headers[index].Value, true
		}
	}
	return "", false
}

// Said is what the handler said of a message; it can be compared with ==.
type Said struct {
	Outcome string // "ack", "emit", "retry" or "reject"
	Class   string
	Reason  string
	// DelayMs is -1 without a delay of its own.
	DelayMs int64
}

// Acked is the outcome ack.
func Acked() Said { return Said{Outcome: "ack", DelayMs: -1} }

// Emitted is the outcome emit.
func Emitted() Said { return Said{Outcome: "emit", DelayMs: -1} }

// Retried is the outcome retry, without a delay.
func Retried(class, reason string) Said { return Said{"retry", class, reason, -1} }

// Rejected is the outcome reject.
func Rejected(class, reason string) Said { return Said{"reject", class, reason, -1} }

// Tester calls a handler.
type Tester struct {
	t       testing.TB
	process any
	memory  *host.Memory
	offset  uint64
	// Topic and Partition are where the messages come from.
	Topic     string
	Partition int
	// Config has the settings of the processor.
	Config map[string]string
	// Secrets has those that are granted; one with the value nil is unavailable.
	Secrets map[string][]byte
}

// New is a tester of a handler: a func(*millrace.Message) millrace.Outcome, or a func(*millrace.Batch).
func New(t testing.TB, process any) *Tester {
	memory := host.NewMemory()
	return &Tester{t: t, process: process, memory: memory, Topic: "test", Config: memory.Config, Secrets: memory.Secrets}
}

// Run is what became of a batch.
type Run struct {
	t       testing.TB
	said    []Said
	outputs [][]Output
	lines   []string
	// Unavailable is why the batch cannot be processed now; empty if it was.
	Unavailable string
}

// Run passes a batch to the handler.
func (tester *Tester) Run(messages ...Message) *Run {
	tester.t.Helper()
	if len(messages) == 0 {
		tester.t.Fatal("a batch has at least one message")
	}
	for index := range messages {
		if messages[index].Offset == 0 {
			messages[index].Offset = tester.offset
		}
		tester.offset = messages[index].Offset + 1
	}
	tester.memory.Lines = nil
	before := maps.Clone(tester.memory.State)
	result := tester.call(messages)
	var failed []int
	wrote := false
	for index, said := range result.said {
		if said.Outcome == "retry" || said.Outcome == "reject" {
			failed = append(failed, index)
			wrote = wrote || slices.ContainsFunc(tester.memory.Writes, func(write host.Write) bool { return int(write.Message) == index })
		}
	}
	if result.Unavailable != "" {
		tester.memory.State = before
	} else if wrote {
		// As a host does: the others are called again without those that failed, whose writes nobody may see.
		tester.memory.State = before
		var others []Message
		var positions []int
		for index, message := range messages {
			if !slices.Contains(failed, index) {
				others, positions = append(others, message), append(positions, index)
			}
		}
		if len(others) > 0 {
			again := tester.call(others)
			if again.Unavailable != "" {
				tester.t.Fatalf("without the messages that failed, the handler says that it is unavailable: %s", again.Unavailable)
			}
			for index, position := range positions {
				result.said[position], result.outputs[position] = again.said[index], again.outputs[index]
			}
		}
	}
	for _, line := range tester.memory.Lines {
		result.lines = append(result.lines, line.Text)
	}
	return result
}

func (tester *Tester) call(messages []Message) *Run {
	tester.t.Helper()
	tester.memory.Writes = nil
	tester.memory.Config, tester.memory.Secrets = tester.Config, tester.Secrets
	host.Current = tester.memory
	input := columnsOf(tester.Topic, tester.Partition, messages)
	// As a host, which has the messages as they were, whatever the handler does with its own copy.
	asSent := input
	asSent.Data = slices.Clone(input.Data)
	answer, unavailable, isUnavailable := run.Answer(input, tester.process)
	result := &Run{t: tester.t}
	if isUnavailable {
		result.Unavailable = unavailable
		return result
	}
	for index := range messages {
		said := Said{Outcome: [...]string{"ack", "emit", "retry", "reject"}[answer.Outcomes[index]], DelayMs: -1}
		for _, detail := range answer.Details {
			if int(detail.Message) == index {
				said.Class, said.Reason = detail.Class, detail.Reason
				if detail.HasDelay {
					said.DelayMs = int64(detail.DelayMs)
				}
			}
		}
		result.said = append(result.said, said)
		result.outputs = append(result.outputs, outputsOf(&asSent, &answer, index))
	}
	return result
}

// Said is what the handler said of the message with this index.
func (r *Run) Said(index int) Said { return r.said[index] }

// Outputs are all outputs, in order.
func (r *Run) Outputs() []Output { return slices.Concat(r.outputs...) }

// OutputsOf are the outputs of the message with this index.
func (r *Run) OutputsOf(index int) []Output { return r.outputs[index] }

// Output is the only output; the test fails if there are none or several.
func (r *Run) Output() Output {
	r.t.Helper()
	outputs := r.Outputs()
	if len(outputs) != 1 {
		r.t.Fatalf("%d outputs instead of one: %v", len(outputs), outputs)
	}
	return outputs[0]
}

// Lines are the lines that the handler logged.
func (r *Run) Lines() []string { return r.lines }

// State is the value of a key, and whether it has one.
func (tester *Tester) State(key string) (string, bool) {
	value, ok := tester.memory.State[key]
	return string(value), ok
}

// SetState sets a key before a run.
func (tester *Tester) SetState(key, value string) { tester.memory.State[key] = []byte(value) }

// Number is the number of a key; 0 if it has none.
func (tester *Tester) Number(key string) int64 {
	tester.t.Helper()
	value, ok := tester.memory.State[key]
	if !ok {
		return 0
	}
	if len(value) != 8 {
		tester.t.Fatalf("the value of the key %q is not a number", key)
	}
	return int64(binary.LittleEndian.Uint64(value))
}

// SetNumber sets a key to a number before a run.
func (tester *Tester) SetNumber(key string, number int64) {
	tester.memory.State[key] = binary.LittleEndian.AppendUint64(nil, uint64(number))
}

// Metric is the value of a counter, a gauge or the last value of a histogram, by its name and labels as in Prometheus: handled{language="go"}.
func (tester *Tester) Metric(series string) float64 { return tester.memory.Metrics[series] }

// Partition is what a partitioner chooses for a message; the test fails if there is no such partition.
func Partition(t testing.TB, choose func(*millrace.Message, int) int, partitions int, message Message) int {
	t.Helper()
	host.Current = host.NewMemory()
	chosen := run.Assign(columnsOf("test", 0, []Message{message}), partitions, choose)[0]
	if chosen < 0 || chosen >= partitions {
		t.Fatalf("the partitioner chose %d of %d partitions", chosen, partitions)
	}
	return chosen
}

func columnsOf(topic string, partition int, messages []Message) columns.Batch {
	batch := columns.Batch{Topic: topic, Partition: uint32(partition), Data: []byte{}}
	add := func(text string) (start, length uint32) {
		start = uint32(len(batch.Data))
		batch.Data = append(batch.Data, text...)
		return start, uint32(len(text))
	}
	optional := func(column []uint32, text string, absent bool) []uint32 {
		if absent {
			return append(column, 0, columns.None)
		}
		start, length := add(text)
		return append(column, start, length)
	}
	for _, message := range messages {
		batch.Offsets = append(batch.Offsets, message.Offset)
		batch.Timestamps = append(batch.Timestamps, message.Timestamp)
		batch.Attempts = append(batch.Attempts, uint32(max(message.Attempt, 1)))
		batch.Keys = optional(batch.Keys, message.Key, message.NoKey)
		batch.Values = optional(batch.Values, message.Value, message.NoValue)
		for _, header := range message.Headers {
			name, nameLength := add(header.Name)
			value, valueLength := add(header.Value)
			batch.Headers = append(batch.Headers, name, nameLength, value, valueLength)
		}
		batch.HeaderEnds = append(batch.HeaderEnds, uint32(len(batch.Headers)/4))
	}
	return batch
}

func outputsOf(input *columns.Batch, answer *columns.Answer, message int) []Output {
	all := slices.Concat(input.Data, answer.Data)
	span := func(column []uint32, at int) (string, bool) {
		start, length := column[at], column[at+1]
		if length == columns.None {
			return "", true
		}
		return string(all[start : start+length]), false
	}
	var outputs []Output
	for index, source := range answer.Sources {
		if int(source) != message {
			continue
		}
		output := Output{Partition: -1, Timestamp: input.Timestamps[source]}
		// An empty column means "as in the input".
		pick := func(column, input []uint32) (string, bool) {
			if len(column) != 0 {
				return span(column, index*2)
			}
			return span(input, int(source)*2)
		}
		output.Key, output.NoKey = pick(answer.Keys, input.Keys)
		output.Value, output.NoValue = pick(answer.Values, input.Values)
		ends, headers, of := answer.HeaderEnds, answer.Headers, index
		if len(ends) == 0 {
			ends, headers, of = input.HeaderEnds, input.Headers, int(source)
		}
		first := 0
		if of > 0 {
			first = int(ends[of-1])
		}
		for header := first; header < int(ends[of]); header++ {
			name, _ := span(headers, header*4)
			value, _ := span(headers, header*4+2)
			output.Headers = append(output.Headers, Header{name, value})
		}
		if len(answer.Topics) != 0 && answer.Topics[index] != columns.None {
			output.Topic = answer.TopicNames[answer.Topics[index]]
		}
		if len(answer.Partitions) != 0 && answer.Partitions[index] != columns.None {
			output.Partition = int(answer.Partitions[index])
		}
		if len(answer.Times) != 0 {
			if timestamp := answer.Times[index*2]; timestamp != columns.NoTime {
				output.Timestamp = timestamp
			}
			if deliver := answer.Times[index*2+1]; deliver != columns.NoTime {
				output.DeliverAt = deliver
			}
		}
		outputs = append(outputs, output)
	}
	return outputs
}

// String is for messages of failing tests.
func (s Said) String() string {
	if s.Class == "" {
		return s.Outcome
	}
	return fmt.Sprintf("%s %s: %s", s.Outcome, s.Class, s.Reason)
}
