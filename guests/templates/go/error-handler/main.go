// {{name}} waits longer after each failure of a busy service, gives rejected messages up at once, and drops those of tests.
package main

import (
	"time"

	"millrace"
)

const (
	delayFirst = 100 * time.Millisecond
	delayMax   = time.Minute
)

func init() { millrace.ErrorHandler(handle) }

func main() {}

func handle(f *millrace.Failure) millrace.Decision {
	switch {
	case f.Class == "busy":
		return millrace.TryAfter(delay(f.Attempt))
	case f.Class == "test-order":
		return millrace.Drop(f.Reason)
	case f.Cause == millrace.ByReject:
		return millrace.DeadLetter()
	}
	return millrace.Policy()
}

// delay is the time after an attempt: it doubles with each one, up to a maximum.
func delay(attempt int) time.Duration {
	delay := delayFirst
	for ; attempt > 1 && delay < delayMax; attempt-- {
		delay *= 2
	}
	return min(delay, delayMax)
}
