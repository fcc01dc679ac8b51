// Package columns has a batch and an answer as they are passed between host and module, in columns: field for field as in wit/types.wit, which documents them.
package columns

// None is the length of a null span, and "not given" in the other columns of 32 bits.
const None = ^uint32(0)

// NoTime is "not given" in Answer.Times.
const NoTime = ^uint64(0)

// Outcomes, as in Answer.Outcomes.
const (
	Ack uint8 = iota
	Emit
	Retry
	Reject
)

// Batch is what a module gets. Its spans are valid: the host built them.
type Batch struct {
	Topic      string
	Partition  uint32
	Data       []byte
	Offsets    []uint64
	Timestamps []uint64
	Attempts   []uint32
	Keys       []uint32
	Values     []uint32
	HeaderEnds []uint32
	Headers    []uint32
}

// Len is the number of messages.
func (b *Batch) Len() int { return len(b.Offsets) }

// Span returns the bytes of a column's span; nil for a null span.
func (b *Batch) Span(column []uint32, index int) []byte {
	start, length := column[index*2], column[index*2+1]
	if length == None {
		return nil
	}
	return b.Data[start : start+length : start+length]
}

// HeaderRange returns which headers a message has.
func (b *Batch) HeaderRange(message int) (start, end uint32) {
	if message > 0 {
		start = b.HeaderEnds[message-1]
	}
	return start, b.HeaderEnds[message]
}

// Detail says why a message should be retried or rejected.
type Detail struct {
	Message  uint32
	HasDelay bool
	DelayMs  uint64
	Class    string
	Reason   string
}

// Answer is what a module returns.
type Answer struct {
	Outcomes   []uint8
	Details    []Detail
	Data       []byte
	Sources    []uint32
	TopicNames []string
	Topics     []uint32
	Partitions []uint32
	Keys       []uint32
	Values     []uint32
	HeaderEnds []uint32
	Headers    []uint32
	Times      []uint64
}

// Reset empties the answer and keeps its memory.
func (a *Answer) Reset() {
	clear(a.Details)
	clear(a.TopicNames)
	*a = Answer{
		a.Outcomes[:0], a.Details[:0], a.Data[:0], a.Sources[:0], a.TopicNames[:0], a.Topics[:0], a.Partitions[:0], a.Keys[:0], a.Values[:0], a.HeaderEnds[:0], a.Headers[:0],
		a.Times[:0],
	}
}

// Failure is a failed message, for error handlers.
type Failure struct {
	Message       uint32
	Revision      uint32
	Attempt       uint32
	FirstFailedAt uint64
	Cause         uint8
	Class         string
	Reason        string
}
