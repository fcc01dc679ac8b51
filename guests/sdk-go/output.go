package millrace

import (
	"bytes"
	"unsafe"

	"millrace/internal/columns"
)

// given is a span that an output was given; if not, it keeps its message's.
type given struct {
	is            bool
	start, length uint32
}

var noTimes = [2]uint64{columns.NoTime, columns.NoTime}

// Output is an output of a message, made by Message.Output: the message, with some parts changed. Bytes are written to the answer as they are given, so an
// output itself is only a few numbers.
type Output struct {
	batch      *Batch
	source     uint32
	topic      uint32
	partition  uint32
	hasHeaders bool
	// A range of the batch's written headers, in numbers.
	headersStart, headersEnd int
	key, value               given
	times                    [2]uint64
}

// outputs has the outputs of one call, in memory that the next call uses again.
type outputs struct {
	pieces [][]Output
	piece  int
}

// Outputs in one piece of memory. Pieces do not move, because outputs are used by their address.
const pieceOutputs = 256

func (o *outputs) reset() {
	for index := range o.pieces {
		o.pieces[index] = o.pieces[index][:0]
	}
	o.piece = 0
}

func (o *outputs) next() *Output {
	for o.piece < len(o.pieces) && len(o.pieces[o.piece]) == pieceOutputs {
		o.piece++
	}
	if o.piece == len(o.pieces) {
		o.pieces = append(o.pieces, make([]Output, 0, pieceOutputs))
	}
	piece := &o.pieces[o.piece]
	*piece = (*piece)[:len(*piece)+1]
	return &(*piece)[len(*piece)-1]
}

// Output begins an output: a copy of the message, as it is when the output is sent. Change it, and send it with Emit.
func (m *Message) Output() *Output {
	output := m.batch.outputs.next()
	*output = Output{batch: m.batch, source: uint32(m.Index), topic: columns.None, partition: columns.None, times: noTimes}
	return output
}

// Topic sends the output to this topic instead of the processor's default output. The processor needs a grant for it.
func (o *Output) Topic(name string) *Output {
	names := o.batch.answer.TopicNames
	// There are few topics, and usually it is the last one again.
	for index := len(names) - 1; index >= 0; index-- {
		if names[index] == name {
			o.topic = uint32(index)
			return o
		}
	}
	o.topic = uint32(len(names))
	o.batch.answer.TopicNames = append(names, string([]byte(name)))
	return o
}

// Partition sends the output to this partition instead of letting the topic's partitioner choose. One that the topic lacks makes the answer malformed.
func (o *Output) Partition(partition int) *Output {
	o.partition = uint32(partition)
	return o
}

// Timestamp replaces the timestamp, in milliseconds since the Unix epoch.
func (o *Output) Timestamp(ms uint64) *Output {
	o.times[0] = ms
	return o
}

// DeliverAt delays it until this time, in milliseconds since the Unix epoch; a time in the past means at once.
func (o *Output) DeliverAt(ms uint64) *Output {
	o.times[1] = ms
	return o
}

// Key replaces the key; nil removes it.
func (o *Output) Key(key []byte) *Output {
	o.key = o.batch.place(key)
	return o
}

// Value replaces the value; nil removes it.
func (o *Output) Value(value []byte) *Output {
	o.value = o.batch.place(value)
	return o
}

// ValueText replaces the value.
func (o *Output) ValueText(value string) *Output {
	o.value = o.batch.placeText(value)
	return o
}

// BuildValue replaces the value by what build appends to the empty slice that it gets. This is the fastest way, because the slice is part of the answer: do not use it after build
// has returned.
func (o *Output) BuildValue(build func(empty []byte) []byte) *Output {
	data := &o.batch.answer.Data
	whole, start := *data, len(*data)
	// While build writes behind the answer's bytes, nothing else may: what build itself does with outputs goes elsewhere.
	*data = whole[:start:start]
	built := build(whole[start:start:cap(whole)])
	if len(*data) == start && cap(whole) > start && cap(built) > 0 && unsafe.SliceData(built) == unsafe.SliceData(whole[start:cap(whole)]) {
		*data = whole[:start+len(built)]
	} else {
		start = len(*data)
		*data = append(*data, built...)
	}
	o.value = given{true, o.batch.end32(start), uint32(len(built))}
	return o
}

// AppendValue appends to the value that this output was given; the first time it replaces the message's.
func (o *Output) AppendValue(parts ...[]byte) *Output {
	data := &o.batch.answer.Data
	start := len(*data)
	if o.value.is && o.value.length != columns.None {
		if at := int(o.value.start) - len(o.batch.columns.Data); at >= 0 && at+int(o.value.length) == start {
			start = at
		} else {
			*data = append(*data, o.batch.given(o.value)...)
		}
	}
	for _, part := range parts {
		*data = append(*data, part...)
	}
	o.value = given{true, o.batch.end32(start), uint32(len(*data) - start)}
	return o
}

// Header adds a header to those that the output has, which are at first the message's. A name that begins with millrace- makes the answer malformed.
func (o *Output) Header(name, value string) *Output {
	return o.addHeader(o.batch.placeText(name), o.batch.placeText(value))
}

// HeaderBytes does the same with a value that is not text; nil is a header without a value.
func (o *Output) HeaderBytes(name string, value []byte) *Output {
	return o.addHeader(o.batch.placeText(name), o.batch.place(value))
}

// WithoutHeaders removes all headers that the output has so far.
func (o *Output) WithoutHeaders() *Output {
	o.hasHeaders = true
	o.headersStart = len(o.batch.headers)
	o.headersEnd = o.headersStart
	return o
}

func (o *Output) addHeader(name, value given) *Output {
	b := o.batch
	// The output's headers move to the end of those written, where they can grow.
	if !o.hasHeaders {
		b.ownHeaders(o)
	} else if o.headersEnd != len(b.headers) {
		moved := len(b.headers)
		b.headers = append(b.headers, b.headers[o.headersStart:o.headersEnd]...)
		o.headersStart = moved
	}
	b.headers = append(b.headers, name.start, name.length, value.start, value.length)
	o.headersEnd = len(b.headers)
	o.hasHeaders = true
	return o
}

// ownHeaders gives the output its message's headers as its own.
func (b *Batch) ownHeaders(o *Output) {
	start, end := b.columns.HeaderRange(int(o.source))
	o.headersStart = len(b.headers)
	b.headers = append(b.headers, b.columns.Headers[start*4:end*4]...)
	for at := o.headersStart; at < len(b.headers); at += 4 {
		if length := b.headers[at+3]; length != columns.None {
			value := b.place(b.columns.Data[b.headers[at+2] : b.headers[at+2]+length])
			b.headers[at+2], b.headers[at+3] = value.start, value.length
		}
	}
	o.headersEnd = len(b.headers)
	o.hasHeaders = true
}

// end32 is a position in the answer's data, as in the contract.
func (b *Batch) end32(position int) uint32 { return uint32(len(b.columns.Data) + position) }

// given are the bytes of a span of the input, as the host has it, or the answer.
func (b *Batch) given(span given) []byte {
	if at := int(span.start) - len(b.columns.Data); at >= 0 {
		return b.answer.Data[at : at+int(span.length)]
	}
	return b.original[span.start : span.start+span.length]
}

// place is a span of these bytes: of the input if they are an unchanged part of it, otherwise of a copy.
func (b *Batch) place(part []byte) given {
	if part == nil {
		return given{true, 0, columns.None}
	}
	if len(part) == 0 {
		return given{true, 0, 0}
	}
	start, from := uintptr(unsafe.Pointer(unsafe.SliceData(b.columns.Data))), uintptr(unsafe.Pointer(unsafe.SliceData(part)))
	if from >= start && from < start+uintptr(len(b.columns.Data)) {
		if at := int(from - start); bytes.Equal(part, b.original[at:at+len(part)]) {
			return given{true, uint32(at), uint32(len(part))}
		}
	}
	at := len(b.answer.Data)
	b.answer.Data = append(b.answer.Data, part...)
	return given{true, b.end32(at), uint32(len(part))}
}

func (b *Batch) placeText(text string) given {
	at := len(b.answer.Data)
	b.answer.Data = append(b.answer.Data, text...)
	return given{true, b.end32(at), uint32(len(text))}
}
