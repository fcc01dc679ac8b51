package millrace

import (
	"time"

	"millrace/internal/columns"
)

// Cause is how an attempt failed.
type Cause uint8

// How an attempt can fail.
const (
	ByRetry Cause = iota
	ByReject
	ByTrap
	ByTimeout
	ByMemory
	ByBadAnswer
)

var causes = [...]string{"retry", "reject", "trap", "timeout", "memory", "bad-answer"}

// String is the cause's name in the contract.
func (c Cause) String() string {
	if int(c) < len(causes) {
		return causes[c]
	}
	return "unknown"
}

// Failure is a failed message. It lives until the call ends.
type Failure struct {
	Message *Message
	// Revision is the one that failed.
	Revision int
	// Attempt is the number of attempts so far, under all revisions, including this one.
	Attempt int
	// FirstFailedAt is in milliseconds since the Unix epoch.
	FirstFailedAt uint64
	Cause         Cause
	// Class is the short word by which failures are grouped, Reason the explanation for people.
	Class, Reason string
}

// Decision is what the host does with a failed message. The zero Decision is DeadLetter.
type Decision struct {
	kind    decisionKind
	delayMs uint64
	reason  string
}

type decisionKind uint8

const (
	decideDeadLetter decisionKind = iota
	decideRetryAfter
	decideDrop
	decidePolicy
)

// TryAfter is: try again after this time, in whole milliseconds; a negative one counts as 0.
func TryAfter(delay time.Duration) Decision {
	return Decision{kind: decideRetryAfter, delayMs: milliseconds(delay)}
}

// DeadLetter is: give it up. It becomes a dead letter.
func DeadLetter() Decision { return Decision{kind: decideDeadLetter} }

// Drop is: drop it. The host counts it and logs the reason.
func Drop(reason string) Decision { return Decision{kind: decideDrop, reason: reason} }

// Policy is: do what the processor's retry policy says.
func Policy() Decision { return Decision{kind: decidePolicy} }

func failureOf(b *Batch, failure *columns.Failure) *Failure {
	return &Failure{
		Message: b.Message(int(failure.Message)), Revision: int(failure.Revision), Attempt: int(failure.Attempt),
		FirstFailedAt: failure.FirstFailedAt, Cause: Cause(failure.Cause), Class: failure.Class, Reason: failure.Reason,
	}
}
