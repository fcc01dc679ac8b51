// Package secrets has the secrets that were granted to the processor by name. A new value reaches the module with its next call.
package secrets

import "millrace/internal/host"

// NotGranted is the error of a secret that the processor may not read.
type NotGranted struct{ Reason string }

// Error is the reason.
func (e *NotGranted) Error() string { return e.Reason }

// Unavailable is the error of a secret that the host does not have now. This is an outage, not a property of a message: answer with millrace.Unavailable.
type Unavailable struct{ Reason string }

// Error is the reason.
func (e *Unavailable) Error() string { return e.Reason }

// Get are the bytes of a secret. The error is a *NotGranted or an *Unavailable.
func Get(name string) ([]byte, error) {
	value, problem, why := host.Secret(name)
	switch problem {
	case host.SecretNotGranted:
		return nil, &NotGranted{why}
	case host.SecretUnavailable:
		return nil, &Unavailable{why}
	}
	return value, nil
}
