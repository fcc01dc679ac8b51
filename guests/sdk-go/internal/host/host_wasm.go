//go:build wasip1

// Package host calls the host: the imports of wit/, with Go's types.
package host

import (
	"unsafe"

	"millrace/internal/columns"
)

// Results of imports come back through this memory. One goroutine at a time is in an import: there is one thread, and an import does not yield.
var result [8]uint32

// at is a pointer to an address that the host named.
func at(address uint32) unsafe.Pointer {
	wide := uintptr(address)
	return *(*unsafe.Pointer)(unsafe.Pointer(&wide))
}

// List is memory of the call that the host wrote, as a slice.
func List[T any](address, length uint32) []T {
	if length == 0 {
		return []T{}
	}
	return unsafe.Slice((*T)(at(address)), length)
}

func resultPointer() unsafe.Pointer { return unsafe.Pointer(&result) }

func pointer[T any](list []T) (unsafe.Pointer, uint32) {
	if len(list) == 0 {
		return nil, 0
	}
	return unsafe.Pointer(unsafe.SliceData(list)), uint32(len(list))
}

func text(text string) (unsafe.Pointer, uint32) {
	if len(text) == 0 {
		return nil, 0
	}
	return unsafe.Pointer(unsafe.StringData(text)), uint32(len(text))
}

//go:wasmimport wasi_snapshot_preview1 clock_res_get
func clockResGet(clock uint32, to unsafe.Pointer) uint32

var resolution uint64

// KeepTime has the adapter (guests/adapter/preview1.wat) read the clocks and keep the time. Without it, the runtime would ask the host for the time when it collects
// garbage while the host passes data, where nothing outside the module may be called.
func KeepTime() { clockResGet(0x4d52, unsafe.Pointer(&resolution)) }

func init() { KeepTime() }

//go:wasmimport millrace:broker/log@0.1.1 log
func logLog(level uint32, message unsafe.Pointer, size uint32)

// Log writes a line.
func Log(level uint8, message string) {
	data, size := text(ValidText(message))
	logLog(uint32(level), data, size)
}

//go:wasmimport millrace:broker/config@0.1.1 get
func configGet(key unsafe.Pointer, size uint32, result unsafe.Pointer)

//go:wasmimport millrace:broker/config@0.1.1 all
func configAll(result unsafe.Pointer)

// Config is the value of a key.
func Config(key string) (string, bool) {
	data, size := text(ValidText(key))
	configGet(data, size, resultPointer())
	if uint8(result[0]) == 0 {
		return "", false
	}
	return string(List[byte](result[1], result[2])), true
}

// ConfigAll calls `each` for all keys, in ascending order.
func ConfigAll(each func(key, value string)) {
	configAll(resultPointer())
	for _, pair := range List[[4]uint32](result[0], result[1]) {
		each(string(List[byte](pair[0], pair[1])), string(List[byte](pair[2], pair[3])))
	}
}

//go:wasmimport millrace:broker/secrets@0.1.1 get
func secretsGet(name unsafe.Pointer, size uint32, result unsafe.Pointer)

// Secret is the value of a secret, or what is wrong.
func Secret(name string) (value []byte, problem SecretProblem, why string) {
	data, size := text(ValidText(name))
	secretsGet(data, size, resultPointer())
	if uint8(result[0]) == 0 {
		return append([]byte{}, List[byte](result[1], result[2])...), SecretFound, ""
	}
	why = string(List[byte](result[2], result[3]))
	if uint8(result[1]) == 0 {
		return nil, SecretNotGranted, why
	}
	return nil, SecretUnavailable, why
}

//go:wasmimport millrace:broker/metrics@0.1.1 add
func metricsAdd(name unsafe.Pointer, size uint32, labels unsafe.Pointer, count uint32, delta uint64)

//go:wasmimport millrace:broker/metrics@0.1.1 set
func metricsSet(name unsafe.Pointer, size uint32, labels unsafe.Pointer, count uint32, value float64)

//go:wasmimport millrace:broker/metrics@0.1.1 observe
func metricsObserve(name unsafe.Pointer, size uint32, labels unsafe.Pointer, count uint32, value float64)

// wireLabels are the labels as addresses. `texts` keeps what they point to.
func wireLabels(labels []Label) (wire [][4]uint32, texts []Label) {
	texts = make([]Label, len(labels))
	wire = make([][4]uint32, len(labels))
	for index, label := range labels {
		texts[index] = Label{ValidText(label.Name), ValidText(label.Value)}
		name, nameSize := text(texts[index].Name)
		value, valueSize := text(texts[index].Value)
		wire[index] = [4]uint32{uint32(uintptr(name)), nameSize, uint32(uintptr(value)), valueSize}
	}
	return wire, texts
}

// kept keeps the labels of a call alive while the host reads them.
var kept []Label

// CounterAdd adds to a counter.
func CounterAdd(name string, delta uint64, labels []Label) {
	wire, texts := wireLabels(labels)
	kept = texts
	data, size := text(ValidText(name))
	list, count := pointer(wire)
	metricsAdd(data, size, list, count, delta)
}

// GaugeSet sets a gauge.
func GaugeSet(name string, value float64, labels []Label) {
	wire, texts := wireLabels(labels)
	kept = texts
	data, size := text(ValidText(name))
	list, count := pointer(wire)
	metricsSet(data, size, list, count, value)
}

// HistogramObserve records a value.
func HistogramObserve(name string, value float64, labels []Label) {
	wire, texts := wireLabels(labels)
	kept = texts
	data, size := text(ValidText(name))
	list, count := pointer(wire)
	metricsObserve(data, size, list, count, value)
}

//go:wasmimport millrace:broker/state@0.1.1 get
func stateGet(data unsafe.Pointer, size uint32, keys unsafe.Pointer, numbers uint32, result unsafe.Pointer)

//go:wasmimport millrace:broker/state@0.1.1 set
func stateSet(data unsafe.Pointer, size uint32, keys unsafe.Pointer, keyNumbers uint32, values unsafe.Pointer, valueNumbers uint32,
	ttl unsafe.Pointer, ttls uint32, messages unsafe.Pointer, messageCount uint32, result unsafe.Pointer)

//go:wasmimport millrace:broker/state@0.1.1 add
func stateAdd(data unsafe.Pointer, size uint32, keys unsafe.Pointer, keyNumbers uint32, deltas unsafe.Pointer, deltaCount uint32,
	ttl unsafe.Pointer, ttls uint32, messages unsafe.Pointer, messageCount uint32, result unsafe.Pointer)

//go:wasmimport millrace:broker/state@0.1.1 scan
func stateScan(prefix unsafe.Pointer, prefixSize uint32, hasAfter uint32, after unsafe.Pointer, afterSize uint32, max uint32, result unsafe.Pointer)

// StateGet returns the values of keys, as spans of bytes that live until the call ends.
func StateGet(data []byte, keys []uint32) (found []byte, values []uint32) {
	bytes, size := pointer(data)
	spans, numbers := pointer(keys)
	stateGet(bytes, size, spans, numbers, resultPointer())
	return List[byte](result[0], result[1]), List[uint32](result[2], result[3])
}

// StateSet sets keys; `full` says why there is no room.
func StateSet(data []byte, keys, values []uint32, ttlMs []uint64, messages []uint32) (full string, ok bool) {
	bytes, size := pointer(data)
	spans, numbers := pointer(keys)
	to, toNumbers := pointer(values)
	ttl, ttls := pointer(ttlMs)
	of, count := pointer(messages)
	stateSet(bytes, size, spans, numbers, to, toNumbers, ttl, ttls, of, count, resultPointer())
	return fullOf()
}

// StateAdd adds to numbers; the sums live until the call ends.
func StateAdd(data []byte, keys []uint32, deltas []int64, ttlMs []uint64, messages []uint32) (sums []int64, full string, ok bool) {
	bytes, size := pointer(data)
	spans, numbers := pointer(keys)
	by, deltaCount := pointer(deltas)
	ttl, ttls := pointer(ttlMs)
	of, count := pointer(messages)
	stateAdd(bytes, size, spans, numbers, by, deltaCount, ttl, ttls, of, count, resultPointer())
	if full, ok = fullOf(); !ok {
		return nil, full, false
	}
	return List[int64](result[1], result[2]), "", true
}

func fullOf() (string, bool) {
	if uint8(result[0]) == 0 {
		return "", true
	}
	return string(List[byte](result[2], result[3])), false
}

// StateScan lists entries; nothing in it outlives the call.
func StateScan(prefix, after []byte, max uint32) (data []byte, keys, values []uint32) {
	bytes, size := pointer(prefix)
	from, fromSize := pointer(after)
	hasAfter := uint32(0)
	if after != nil {
		hasAfter = 1
	}
	stateScan(bytes, size, hasAfter, from, fromSize, max, resultPointer())
	return List[byte](result[0], result[1]), List[uint32](result[2], result[3]), List[uint32](result[4], result[5])
}

// ReadBatch is the batch at the address of an exported function's argument, read where the host put it.
func ReadBatch(arguments unsafe.Pointer, batch *columns.Batch) {
	words := (*[19]uint32)(arguments)
	*batch = columns.Batch{
		Topic:      string(List[byte](words[0], words[1])),
		Partition:  words[2],
		Data:       List[byte](words[3], words[4]),
		Offsets:    List[uint64](words[5], words[6]),
		Timestamps: List[uint64](words[7], words[8]),
		Attempts:   List[uint32](words[9], words[10]),
		Keys:       List[uint32](words[11], words[12]),
		Values:     List[uint32](words[13], words[14]),
		HeaderEnds: List[uint32](words[15], words[16]),
		Headers:    List[uint32](words[17], words[18]),
	}
}
