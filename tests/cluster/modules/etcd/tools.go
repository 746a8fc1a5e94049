//go:build tools

// Package tools pins etcd, which the test cluster runs.
package tools

import _ "go.etcd.io/etcd/server/v3"
