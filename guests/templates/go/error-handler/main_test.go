package main

import (
	"testing"
	"time"

	"millrace"
)

func TestTheDelayDoublesUpToItsMaximum(t *testing.T) {
	for attempt, wanted := range map[int]time.Duration{1: delayFirst, 2: 2 * delayFirst, 3: 4 * delayFirst, 1000: delayMax} {
		if got := delay(attempt); got != wanted {
			t.Errorf("after attempt %d: %v instead of %v", attempt, got, wanted)
		}
	}
}

func TestFailuresAreDecidedByTheirClass(t *testing.T) {
	for class, wanted := range map[string]millrace.Decision{
		"busy":       millrace.TryAfter(delayFirst),
		"test-order": millrace.Drop("why"),
		"bad":        millrace.DeadLetter(),
	} {
		got := handle(&millrace.Failure{Class: class, Reason: "why", Cause: millrace.ByReject, Attempt: 1})
		if got != wanted {
			t.Errorf("%s: %v instead of %v", class, got, wanted)
		}
	}
}
