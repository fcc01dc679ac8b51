package millrace

import (
	"time"

	"millrace/internal/columns"
)

// Outcome is what becomes of a message. The zero Outcome is Ack.
type Outcome struct {
	kind     uint8
	hasDelay bool
	delayMs  uint64
	first    *Output
	more     []*Output
	class    string
	reason   string
}

const unavailable = columns.Reject + 1

// Ack is: done, without outputs.
func Ack() Outcome { return Outcome{} }

// Emit is: done, send these outputs. An output that is nil is left out; without any other, the message is done without outputs.
func Emit(first *Output, more ...*Output) Outcome {
	return Outcome{kind: columns.Emit, first: first, more: more}
}

// EmitAll is Emit with a slice, which may be empty.
func EmitAll(outputs []*Output) Outcome {
	if len(outputs) == 0 {
		return Ack()
	}
	return Emit(outputs[0], outputs[1:]...)
}

// Retry is: try again later, after the delay of the processor's policy. The class is a short word by which failures are grouped, the reason an explanation for people.
func Retry(class, reason string) Outcome {
	return Outcome{kind: columns.Retry, class: class, reason: reason}
}

// RetryAfter is: try again after this time, in whole milliseconds; a negative one counts as 0.
func RetryAfter(delay time.Duration, class, reason string) Outcome {
	return Outcome{kind: columns.Retry, hasDelay: true, delayMs: milliseconds(delay), class: class, reason: reason}
}

// Reject is: give it up. The message becomes a dead letter.
func Reject(class, reason string) Outcome {
	return Outcome{kind: columns.Reject, class: class, reason: reason}
}

// Unavailable is: something outside is down. The host tries the whole batch again later, without spending attempts; outcomes of its other messages are forgotten.
func Unavailable(reason string) Outcome {
	return Outcome{kind: unavailable, reason: reason}
}

func milliseconds(duration time.Duration) uint64 {
	return uint64(max(duration, 0) / time.Millisecond)
}
