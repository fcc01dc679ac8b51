// Package logging writes lines to the processor's log. What a module prints to standard output and standard error becomes lines of it, too. Package structured
// has a handler for log/slog.
package logging

import "millrace/internal/host"

// Error writes a line.
func Error(line string) { host.Log(0, line) }

// Warn writes a line.
func Warn(line string) { host.Log(1, line) }

// Info writes a line.
func Info(line string) { host.Log(2, line) }

// Debug writes a line.
func Debug(line string) { host.Log(3, line) }
