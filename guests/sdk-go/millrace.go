// Package millrace is for writing Millrace modules in Go: a function of one message, which the module registers when it starts.
//
//	package main
//
//	import "millrace"
//
//	func init() { millrace.Processor(greet) }
//
//	func main() {}
//
//	func greet(m *millrace.Message) millrace.Outcome {
//		if m.Value == nil {
//			return millrace.Reject("no-value", "there is nobody to greet")
//		}
//		return millrace.Emit(m.Output().AppendValue([]byte("hello, "), m.Value))
//	}
//
// Build it with GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared. The packages beside this one are what a module may use of its host: state, config, secrets, metrics and logging.
//
// The host passes messages in batches, in columns, which this package hides. An output starts as a copy of its message and states only the differences: unchanged parts, and slices of
// the input, are not copied.
//
// Keys, values and headers of a message, and a *Message itself, live until the call ends: copy what you need longer. A handler may change them where they are; what it sends then
// has the changed bytes. A call has one thread. While it lasts, time.Now stands nearly
// still, and a sleep ends at once: waiting is the host's part (RetryAfter). A handler may start goroutines that compute, but only its own goroutine may use the host: state, config,
// secrets, metrics and logging.
//
// A panic is a trap: the host finds the failing message, tries it again, and finally makes it a dead letter with the text of the panic. Handlers can be tested with
// plain go test: package millracetest passes messages to them.
package millrace

import "iter"

// Processor makes this function the module's message processor. Call it in a function init.
func Processor(process func(*Message) Outcome) {
	BatchProcessor(func(batch *Batch) { answerEach(batch, process) })
}

func answerEach(batch *Batch, process func(*Message) Outcome) {
	for index := range batch.messages {
		if !batch.Answer(process(&batch.messages[index])) {
			return
		}
	}
}

// BatchProcessor makes this function the module's message processor, for work that is cheaper once per batch. It calls Batch.Answer once for each message, in order. Call it in a function init.
func BatchProcessor(process func(*Batch)) {
	register("processor", processor == nil)
	processor = process
}

// Partitioner makes this function the module's partitioner. Its result is at least 0 and below partitions. Call it in a function init.
func Partitioner(choose func(m *Message, partitions int) int) {
	register("partitioner", partitioner == nil)
	partitioner = choose
}

// ErrorHandler makes this function the module's error handler. Call it in a function init.
func ErrorHandler(handle func(*Failure) Decision) {
	register("error handler", errorHandler == nil)
	errorHandler = handle
}

var (
	processor    func(*Batch)
	partitioner  func(*Message, int) int
	errorHandler func(*Failure) Decision
)

func register(what string, first bool) {
	if !first {
		panic("millrace: a module has one " + what)
	}
}

// Header is a name and a value.
type Header struct {
	Name  string
	Value []byte
}

// Message is a message of a batch. It lives until the call ends.
type Message struct {
	// Key is nil if the message has none.
	Key []byte
	// Value is nil if the message has none, which is not the same as an empty one.
	Value  []byte
	Offset uint64
	// Timestamp is in milliseconds since the Unix epoch.
	Timestamp uint64
	// Attempt is which attempt this is, from 1, including attempts of earlier revisions.
	Attempt int
	// Index is its position in the batch, from 0.
	Index int

	batch *Batch
}

// Topic is the topic that the message comes from.
func (m *Message) Topic() string { return m.batch.columns.Topic }

// Partition is the partition that the message comes from.
func (m *Message) Partition() int { return int(m.batch.columns.Partition) }

// Header is the value of the last header with this name; nil if there is none.
func (m *Message) Header(name string) []byte {
	columns := &m.batch.columns
	start, end := columns.HeaderRange(m.Index)
	for index := int(end) - 1; index >= int(start); index-- {
		if string(columns.Span(columns.Headers, index*2)) == name {
			return columns.Span(columns.Headers, index*2+1)
		}
	}
	return nil
}

// Headers are all headers, in order.
func (m *Message) Headers() iter.Seq[Header] {
	columns := &m.batch.columns
	return func(yield func(Header) bool) {
		start, end := columns.HeaderRange(m.Index)
		for index := int(start); index < int(end); index++ {
			header := Header{string(columns.Span(columns.Headers, index*2)), columns.Span(columns.Headers, index*2+1)}
			if !yield(header) {
				return
			}
		}
	}
}
