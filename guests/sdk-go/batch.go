package millrace

import (
	"bytes"
	"iter"
	"strconv"

	"millrace/internal/columns"
)

// Batch is a batch of messages and the answer to it. There is one, whose memory is used again by each call.
type Batch struct {
	columns columns.Batch
	// The bytes of the messages as the host has them. What an answer names as a part of the batch is taken from the host's copy, so a handler that changes bytes where they
	// are would otherwise send the old ones.
	original []byte
	messages []Message
	answer   columns.Answer
	// Headers of outputs, four numbers each, in the order of writing.
	headers []uint32
	outputs outputs
	// Why the batch cannot be processed now.
	unavailable   string
	isUnavailable bool
}

// begin prepares for the messages in b.columns.
func (b *Batch) begin() {
	b.answer.Reset()
	b.headers = b.headers[:0]
	b.outputs.reset()
	b.unavailable, b.isUnavailable = "", false
	count := b.columns.Len()
	if cap(b.messages) < count {
		b.messages = make([]Message, count)
	}
	b.messages = b.messages[:count]
	input := &b.columns
	b.original = append(b.original[:0], input.Data...)
	for index := range b.messages {
		b.messages[index] = Message{
			Key:       input.Span(input.Keys, index),
			Value:     input.Span(input.Values, index),
			Offset:    input.Offsets[index],
			Timestamp: input.Timestamps[index],
			Attempt:   int(input.Attempts[index]),
			Index:     index,
			batch:     b,
		}
	}
	// Most handlers return about as many bytes as they get.
	if room := len(input.Data) + 16*count; cap(b.answer.Data) < room {
		b.answer.Data = make([]byte, 0, room)
	}
}

// Len is the number of messages.
func (b *Batch) Len() int { return len(b.messages) }

// Topic is the topic that the messages come from.
func (b *Batch) Topic() string { return b.columns.Topic }

// Partition is the partition that the messages come from.
func (b *Batch) Partition() int { return int(b.columns.Partition) }

// Message is the message with this index, from 0. It panics if there is none.
func (b *Batch) Message(index int) *Message { return &b.messages[index] }

// Messages are all messages, in order.
func (b *Batch) Messages() iter.Seq[*Message] {
	return func(yield func(*Message) bool) {
		for index := range b.messages {
			if !yield(&b.messages[index]) {
				return
			}
		}
	}
}

// Answer sets the outcome of the next message. It returns false if the outcome was Unavailable: then nothing else of the batch matters. It panics if all messages have their outcome, or if an output
// belongs to another message.
func (b *Batch) Answer(outcome Outcome) bool {
	message := len(b.answer.Outcomes)
	if message >= len(b.messages) {
		panic("millrace: Answer: all messages of the batch have their outcome")
	}
	kind := outcome.kind
	switch kind {
	case columns.Emit:
		before := len(b.answer.Sources)
		b.emit(outcome.first, message)
		for _, output := range outcome.more {
			b.emit(output, message)
		}
		if len(b.answer.Sources) == before {
			kind = columns.Ack
		}
	case columns.Retry, columns.Reject:
		b.answer.Details = append(b.answer.Details, columns.Detail{
			Message: uint32(message), HasDelay: outcome.hasDelay, DelayMs: outcome.delayMs, Class: outcome.class, Reason: outcome.reason,
		})
	case unavailable:
		b.unavailable, b.isUnavailable = outcome.reason, true
		return false
	}
	b.answer.Outcomes = append(b.answer.Outcomes, kind)
	return true
}

// end checks the answer.
func (b *Batch) end() {
	if given, wanted := len(b.answer.Outcomes), len(b.messages); given != wanted && !b.isUnavailable {
		panic("millrace: " + strconv.Itoa(given) + " outcomes for " + strconv.Itoa(wanted) + " messages: call Batch.Answer once for each")
	}
}

// emit adds an output; nil is none. A column stays empty, which means "as in the input", until the first output that differs in it: so a batch that is passed through costs one
// number per message.
func (b *Batch) emit(output *Output, message int) {
	if output == nil {
		return
	}
	if output.batch != b || int(output.source) != message {
		panic("millrace: an output belongs to the message that it was made from")
	}
	answer, input := &b.answer, &b.columns
	b.keep(output, &b.messages[message])
	answer.Keys = addSpan(answer.Keys, output.key, output.source, answer.Sources, input.Keys)
	answer.Values = addSpan(answer.Values, output.value, output.source, answer.Sources, input.Values)
	answer.Topics = addNumber(answer.Topics, output.topic, len(answer.Sources))
	answer.Partitions = addNumber(answer.Partitions, output.partition, len(answer.Sources))
	b.addHeaders(output)
	if output.times != noTimes || len(answer.Times) != 0 {
		for len(answer.Times) < len(answer.Sources)*2 {
			answer.Times = append(answer.Times, columns.NoTime)
		}
		answer.Times = append(answer.Times, output.times[0], output.times[1])
	}
	answer.Sources = append(answer.Sources, output.source)
}

// keep makes parts that the output keeps of its message, but that the handler has changed in the message, parts of its own.
func (b *Batch) keep(output *Output, message *Message) {
	if !output.key.is && b.isChanged(message.Key, b.columns.Keys, message.Index) {
		output.key = b.place(message.Key)
	}
	if !output.value.is && b.isChanged(message.Value, b.columns.Values, message.Index) {
		output.value = b.place(message.Value)
	}
	if !output.hasHeaders {
		start, end := b.columns.HeaderRange(message.Index)
		for index := int(start); index < int(end); index++ {
			// Names are strings, which nobody changes.
			if b.isChanged(b.columns.Span(b.columns.Headers, index*2+1), b.columns.Headers, index*2+1) {
				b.ownHeaders(output)
				break
			}
		}
	}
}

// isChanged says whether bytes are no longer those of this span.
func (b *Batch) isChanged(given []byte, column []uint32, index int) bool {
	start, length := column[index*2], column[index*2+1]
	if length == columns.None {
		return given != nil
	}
	return given == nil || !bytes.Equal(given, b.original[start:start+length])
}

func addSpan(column []uint32, given given, source uint32, earlier, input []uint32) []uint32 {
	if !given.is {
		if len(column) != 0 {
			column = append(column, input[source*2], input[source*2+1])
		}
		return column
	}
	if len(column) == 0 {
		for _, source := range earlier {
			column = append(column, input[source*2], input[source*2+1])
		}
	}
	return append(column, given.start, given.length)
}

func addNumber(column []uint32, given uint32, earlier int) []uint32 {
	if given == columns.None && len(column) == 0 {
		return column
	}
	for len(column) < earlier {
		column = append(column, columns.None)
	}
	return append(column, given)
}

func (b *Batch) addHeaders(output *Output) {
	answer := &b.answer
	if !output.hasHeaders && len(answer.HeaderEnds) == 0 {
		return
	}
	for len(answer.HeaderEnds) < len(answer.Sources) {
		b.keepHeaders(answer.Sources[len(answer.HeaderEnds)])
	}
	if !output.hasHeaders {
		b.keepHeaders(output.source)
		return
	}
	answer.Headers = append(answer.Headers, b.headers[output.headersStart:output.headersEnd]...)
	answer.HeaderEnds = append(answer.HeaderEnds, uint32(len(answer.Headers)/4))
}

func (b *Batch) keepHeaders(source uint32) {
	start, end := b.columns.HeaderRange(int(source))
	b.answer.Headers = append(b.answer.Headers, b.columns.Headers[start*4:end*4]...)
	b.answer.HeaderEnds = append(b.answer.HeaderEnds, uint32(len(b.answer.Headers)/4))
}
