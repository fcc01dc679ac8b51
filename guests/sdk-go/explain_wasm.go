//go:build wasip1

package millrace

import (
	"runtime"
	"strconv"
	"strings"
)

// Functions of the stack that are printed.
const explainedFrames = 12

// explain turns a panic into a trap that the host can explain. The runtime would print the text of the panic first and the stack after it; but the end of what a module
// prints becomes part of the dead letter. So here the text comes last.
func explain() {
	value := recover()
	if value == nil {
		return
	}
	var text strings.Builder
	var stack [explainedFrames + 8]uintptr
	frames := runtime.CallersFrames(stack[:runtime.Callers(2, stack[:])])
	for {
		frame, more := frames.Next()
		if !strings.HasPrefix(frame.Function, "runtime.") && !strings.HasPrefix(frame.Function, "millrace.exported") {
			text.WriteString("at " + frame.Function + " (" + frame.File + ":" + strconv.Itoa(frame.Line) + ")\n")
		}
		if !more {
			break
		}
	}
	text.WriteString("panic: " + panicText(value) + "\n")
	// To standard error, in one piece.
	print(text.String())
	procExit(2)
}

//go:wasmimport wasi_snapshot_preview1 proc_exit
func procExit(code uint32)

func panicText(value any) string {
	switch value := value.(type) {
	case error:
		return value.Error()
	case string:
		return value
	case interface{ String() string }:
		return value.String()
	case int:
		return strconv.Itoa(value)
	default:
		return "a value of a type without text"
	}
}
