//go:build tools

// Package tools pins coredns, which the test cluster runs.
package tools

import _ "github.com/coredns/coredns"
