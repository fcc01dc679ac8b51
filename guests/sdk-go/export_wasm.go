//go:build wasip1

package millrace

import (
	"unsafe"

	"millrace/internal/columns"
	"millrace/internal/host"
)

var batch Batch

// Answers in the contract's layout. They are read by the host after the call, so they are not on a stack.
var (
	wireAnswer    [26]uint32
	wireDetails   []wireDetail
	wireTopics    [][2]uint32
	wireList      [2]uint32
	wireDecisions []wireDecision
	assigned      []uint32
	// Keeps texts alive that the answer points to.
	texts []string
)

type wireDetail struct {
	message  uint32
	_        uint32
	hasDelay uint8
	_        [7]byte
	delayMs  uint64
	class    [2]uint32
	reason   [2]uint32
}

type wireFailure struct {
	message, revision, attempt uint32
	_                          uint32
	firstFailedAt              uint64
	cause                      uint8
	_                          [3]byte
	class, reason              [2]uint32
	_                          uint32
}

type wireDecision struct {
	kind uint8
	_    [7]byte
	// The delay, or the address and the length of the reason.
	of uint64
}

// Kinds of decisions in the contract, by ours.
var wireKinds = [...]uint8{decideDeadLetter: 1, decideRetryAfter: 0, decideDrop: 2, decidePolicy: 3}

//go:wasmexport millrace:broker/message-processor@0.1.1#process
func exportedProcess(arguments unsafe.Pointer) unsafe.Pointer {
	defer host.Explain()
	host.KeepTime()
	if processor == nil {
		panic("millrace: the module has no processor: call millrace.Processor in a function init")
	}
	host.ReadBatch(arguments, &batch.columns)
	batch.begin()
	processor(&batch)
	batch.end()
	writeAnswer()
	host.Answered()
	return unsafe.Pointer(&wireAnswer)
}

func writeAnswer() {
	clear(texts)
	texts = texts[:0]
	wireAnswer = [26]uint32{}
	if batch.isUnavailable {
		wireAnswer[0] = 1
		reason := wireText(batch.unavailable)
		wireAnswer[2], wireAnswer[3] = reason[0], reason[1]
		return
	}
	answer := &batch.answer
	wireDetails = wireDetails[:0]
	for _, detail := range answer.Details {
		wire := wireDetail{message: detail.Message, delayMs: detail.DelayMs, class: wireText(detail.Class), reason: wireText(detail.Reason)}
		if detail.HasDelay {
			wire.hasDelay = 1
		}
		wireDetails = append(wireDetails, wire)
	}
	wireTopics = wireTopics[:0]
	for _, name := range answer.TopicNames {
		wireTopics = append(wireTopics, wireText(name))
	}
	putList(1, answer.Outcomes)
	putList(3, wireDetails)
	putList(5, answer.Data)
	putList(7, answer.Sources)
	putList(9, wireTopics)
	putList(11, answer.Topics)
	putList(13, answer.Partitions)
	putList(15, answer.Keys)
	putList(17, answer.Values)
	putList(19, answer.HeaderEnds)
	putList(21, answer.Headers)
	putList(23, answer.Times)
}

func putList[T any](word int, list []T) {
	pair := wirePair(list)
	wireAnswer[word], wireAnswer[word+1] = pair[0], pair[1]
}

func wirePair[T any](list []T) [2]uint32 {
	if len(list) == 0 {
		return [2]uint32{}
	}
	return [2]uint32{uint32(uintptr(unsafe.Pointer(unsafe.SliceData(list)))), uint32(len(list))}
}

func wireText(text string) [2]uint32 {
	text = host.ValidText(text)
	texts = append(texts, text)
	return wirePair(unsafe.Slice(unsafe.StringData(text), len(text)))
}

//go:wasmexport millrace:broker/partitioner@0.1.1#assign
func exportedAssign(arguments unsafe.Pointer) unsafe.Pointer {
	defer host.Explain()
	host.KeepTime()
	if partitioner == nil {
		panic("millrace: the module has no partitioner: call millrace.Partitioner in a function init")
	}
	partitions := *(*uint32)(arguments)
	host.ReadBatch(unsafe.Add(arguments, 4), &batch.columns)
	batch.begin()
	assigned = assigned[:0]
	for index := range batch.messages {
		assigned = append(assigned, uint32(partitioner(&batch.messages[index], int(partitions))))
	}
	wireList = wirePair(assigned)
	host.Answered()
	return unsafe.Pointer(&wireList)
}

//go:wasmexport millrace:broker/error-handler@0.1.1#handle
func exportedHandle(arguments unsafe.Pointer) unsafe.Pointer {
	defer host.Explain()
	host.KeepTime()
	if errorHandler == nil {
		panic("millrace: the module has no error handler: call millrace.ErrorHandler in a function init")
	}
	words := (*[2]uint32)(arguments)
	failures := host.List[wireFailure](words[0], words[1])
	host.ReadBatch(unsafe.Add(arguments, 8), &batch.columns)
	batch.begin()
	clear(texts)
	texts = texts[:0]
	wireDecisions = wireDecisions[:0]
	for index := range failures {
		wire := &failures[index]
		decision := errorHandler(failureOf(&batch, &columns.Failure{
			Message: wire.message, Revision: wire.revision, Attempt: wire.attempt, FirstFailedAt: wire.firstFailedAt, Cause: wire.cause,
			Class: string(host.List[byte](wire.class[0], wire.class[1])), Reason: string(host.List[byte](wire.reason[0], wire.reason[1])),
		}))
		decided := wireDecision{kind: wireKinds[decision.kind], of: decision.delayMs}
		if decision.kind == decideDrop {
			reason := wireText(decision.reason)
			decided.of = uint64(reason[0]) | uint64(reason[1])<<32
		}
		wireDecisions = append(wireDecisions, decided)
	}
	wireList = wirePair(wireDecisions)
	host.Answered()
	return unsafe.Pointer(&wireList)
}
