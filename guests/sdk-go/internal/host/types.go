package host

import (
	"strings"
	"unicode/utf8"
)

// Label is a label of a metric.
type Label struct{ Name, Value string }

// SecretProblem is how reading a secret ended.
type SecretProblem uint8

// How reading a secret can end.
const (
	SecretFound SecretProblem = iota
	SecretNotGranted
	SecretUnavailable
)

// ValidText replaces what is not UTF-8: the contract's strings are.
func ValidText(text string) string {
	if utf8.ValidString(text) {
		return text
	}
	return strings.ToValidUTF8(text, "\uFFFD")
}

// Header is a name and a value of a request, an answer or a message.
type Header struct {
	Name  string
	Value []byte
}

// Problem is how sending messages or reading others' state ended.
type Problem uint8

// How it can end.
const (
	Fine Problem = iota
	NotGranted
	Refused
	KeyReused
	Unavailable
)

// Later is the offset of a message that is delivered later.
const Later = ^uint64(0)

// Sent is where messages are, in their order.
type Sent struct {
	Partitions []uint32
	Offsets    []uint64
	Repeated   bool
}

// Outgoing are messages in columns, as in wit/producer.wit.
type Outgoing struct {
	Data       []byte
	Keys       []uint32
	Values     []uint32
	HeaderEnds []uint32
	Headers    []uint32
	Partitions []uint32
	Times      []uint64
}

// Page are entries of state; nothing in it outlives the call.
type Page struct {
	Data         []byte
	Keys, Values []uint32
	HasMore      bool
}
