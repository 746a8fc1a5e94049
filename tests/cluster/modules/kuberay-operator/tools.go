//go:build tools

// Package tools pins kuberay-operator, which the test cluster runs.
package tools

import _ "github.com/ray-project/kuberay/ray-operator"
