// Package config has the settings of the processor, as operators gave them. A change reaches the module with its next call, without a deployment.
package config

import "millrace/internal/host"

// Get is the value of a key, and whether it has one.
func Get(key string) (value string, ok bool) { return host.Config(key) }

// All are all keys and their values.
func All() map[string]string {
	all := map[string]string{}
	host.ConfigAll(func(key, value string) { all[key] = value })
	return all
}
