// Package structured is log/slog for the processor's log. It is a package of its own because log/slog makes a module half a megabyte larger.
package structured

import (
	"bytes"
	"context"
	"log/slog"

	"millrace/logging"
)

// Handler is a slog.Handler that writes to the processor's log: slog.SetDefault(slog.New(structured.NewHandler(slog.LevelInfo))). The host adds time and level, so
// a line has the message and its attributes.
type Handler struct {
	text slog.Handler
	line *bytes.Buffer
}

// NewHandler is a handler for records of this level and above.
func NewHandler(least slog.Leveler) *Handler {
	line := &bytes.Buffer{}
	return &Handler{slog.NewTextHandler(line, &slog.HandlerOptions{Level: least, ReplaceAttr: withoutTimeAndLevel}), line}
}

func withoutTimeAndLevel(groups []string, attribute slog.Attr) slog.Attr {
	if len(groups) == 0 && (attribute.Key == slog.TimeKey || attribute.Key == slog.LevelKey) {
		return slog.Attr{}
	}
	return attribute
}

// Enabled is part of slog.Handler.
func (h *Handler) Enabled(ctx context.Context, level slog.Level) bool {
	return h.text.Enabled(ctx, level)
}

// Handle is part of slog.Handler.
func (h *Handler) Handle(ctx context.Context, record slog.Record) error {
	h.line.Reset()
	if err := h.text.Handle(ctx, record); err != nil {
		return err
	}
	line := string(bytes.TrimSuffix(h.line.Bytes(), []byte("\n")))
	switch {
	case record.Level >= slog.LevelError:
		logging.Error(line)
	case record.Level >= slog.LevelWarn:
		logging.Warn(line)
	case record.Level >= slog.LevelInfo:
		logging.Info(line)
	default:
		logging.Debug(line)
	}
	return nil
}

// WithAttrs is part of slog.Handler.
func (h *Handler) WithAttrs(attributes []slog.Attr) slog.Handler {
	return &Handler{h.text.WithAttrs(attributes), h.line}
}

// WithGroup is part of slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{h.text.WithGroup(name), h.line}
}
