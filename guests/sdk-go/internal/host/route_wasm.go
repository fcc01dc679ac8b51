//go:build wasip1

package host

import "unsafe"

// What a route uses besides: it sends messages and reads the state of processors.

// The parameters of send, in memory because they are many; the layout is the contract's. They keep what they point to alive.
var sending struct {
	words    [19]uint32
	topic    string
	key      string
	messages *Outgoing
}

//go:wasmimport millrace:broker/producer@0.1.1 send
func producerSend(arguments unsafe.Pointer, result unsafe.Pointer)

//go:wasmimport millrace:broker/producer@0.1.1 settled
func producerSettled(processor unsafe.Pointer, processorSize uint32, topic unsafe.Pointer, topicSize uint32, partitions unsafe.Pointer, count uint32,
	offsets unsafe.Pointer, offsetCount uint32, repeated uint32, ms uint64, result unsafe.Pointer)

// Send sends messages to a topic; with a key, once.
func Send(topic string, messages *Outgoing, key string, hasKey bool) (Sent, Problem, string) {
	sending.topic, sending.key, sending.messages = ValidText(topic), ValidText(key), messages
	words := &sending.words
	put := func(word int, data unsafe.Pointer, size uint32) {
		words[word], words[word+1] = uint32(uintptr(data)), size
	}
	data, size := text(sending.topic)
	put(0, data, size)
	data, size = pointer(messages.Data)
	put(2, data, size)
	for index, column := range [...][]uint32{messages.Keys, messages.Values, messages.HeaderEnds, messages.Headers, messages.Partitions} {
		data, size = pointer(column)
		put(4+2*index, data, size)
	}
	data, size = pointer(messages.Times)
	put(14, data, size)
	words[16] = 0
	if hasKey {
		words[16] = 1
	}
	data, size = text(sending.key)
	put(17, data, size)
	producerSend(unsafe.Pointer(words), resultPointer())
	if problem, why := sendProblem(); problem != Fine {
		return Sent{}, problem, why
	}
	return Sent{
		Partitions: append([]uint32{}, List[uint32](result[1], result[2])...),
		Offsets:    append([]uint64{}, List[uint64](result[3], result[4])...),
		Repeated:   uint8(result[5]) != 0,
	}, Fine, ""
}

// Settled waits until a processor has settled messages.
func Settled(processor, topic string, sent Sent, ms uint64) (bool, Problem, string) {
	owner, ownerSize := text(ValidText(processor))
	name, nameSize := text(ValidText(topic))
	partitions, count := pointer(sent.Partitions)
	offsets, offsetCount := pointer(sent.Offsets)
	repeated := uint32(0)
	if sent.Repeated {
		repeated = 1
	}
	producerSettled(owner, ownerSize, name, nameSize, partitions, count, offsets, offsetCount, repeated, ms, resultPointer())
	problem, why := sendProblem()
	return problem == Fine && uint8(result[1]) != 0, problem, why
}

// sendProblem is the error of an answer: a case and a text.
func sendProblem() (Problem, string) {
	if uint8(result[0]) == 0 {
		return Fine, ""
	}
	return NotGranted + Problem(uint8(result[1])), string(List[byte](result[2], result[3]))
}

//go:wasmimport millrace:broker/views@0.1.1 partitions
func viewsPartitions(processor unsafe.Pointer, processorSize, hasTopic uint32, topic unsafe.Pointer, topicSize uint32, result unsafe.Pointer)

//go:wasmimport millrace:broker/views@0.1.1 get
func viewsGet(processor unsafe.Pointer, processorSize, hasTopic uint32, topic unsafe.Pointer, topicSize, hasPartition, partition uint32,
	data unsafe.Pointer, size uint32, keys unsafe.Pointer, numbers uint32, result unsafe.Pointer)

//go:wasmimport millrace:broker/views@0.1.1 scan
func viewsScan(processor unsafe.Pointer, processorSize, hasTopic uint32, topic unsafe.Pointer, topicSize, partition uint32,
	prefix unsafe.Pointer, prefixSize, hasAfter uint32, after unsafe.Pointer, afterSize, max uint32, result unsafe.Pointer)

// Like those of sending, without the case of reused keys.
func viewProblem() (Problem, string) {
	problem, why := sendProblem()
	if problem > Refused {
		problem = Unavailable
	}
	return problem, why
}

func hasText(text string) uint32 {
	if text == "" {
		return 0
	}
	return 1
}

// ViewPartitions is the number of partitions; an empty topic is none.
func ViewPartitions(processor, topic string) (int, Problem, string) {
	owner, ownerSize := text(ValidText(processor))
	name, nameSize := text(ValidText(topic))
	viewsPartitions(owner, ownerSize, hasText(topic), name, nameSize, resultPointer())
	problem, why := viewProblem()
	return int(result[1]), problem, why
}

// ViewGet returns the values of keys in a partition, or if it is negative in those of their messages.
func ViewGet(processor, topic string, partition int, data []byte, keys []uint32) (Page, Problem, string) {
	owner, ownerSize := text(ValidText(processor))
	name, nameSize := text(ValidText(topic))
	bytes, size := pointer(data)
	spans, numbers := pointer(keys)
	hasPartition := uint32(1)
	if partition < 0 {
		hasPartition, partition = 0, 0
	}
	viewsGet(owner, ownerSize, hasText(topic), name, nameSize, hasPartition, uint32(partition), bytes, size, spans, numbers, resultPointer())
	if problem, why := viewProblem(); problem != Fine {
		return Page{}, problem, why
	}
	return Page{Data: List[byte](result[1], result[2]), Values: List[uint32](result[3], result[4])}, Fine, ""
}

// ViewScan lists entries of a partition.
func ViewScan(processor, topic string, partition int, prefix, after []byte, max uint32) (Page, Problem, string) {
	owner, ownerSize := text(ValidText(processor))
	name, nameSize := text(ValidText(topic))
	begin, beginSize := pointer(prefix)
	from, fromSize := pointer(after)
	hasAfter := uint32(0)
	if after != nil {
		hasAfter = 1
	}
	viewsScan(owner, ownerSize, hasText(topic), name, nameSize, uint32(partition), begin, beginSize, hasAfter, from, fromSize, max, resultPointer())
	if problem, why := viewProblem(); problem != Fine {
		return Page{}, problem, why
	}
	return Page{
		Data: List[byte](result[1], result[2]), Keys: List[uint32](result[3], result[4]), Values: List[uint32](result[5], result[6]),
		HasMore: uint8(result[7]) != 0,
	}, Fine, ""
}
