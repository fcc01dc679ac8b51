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
