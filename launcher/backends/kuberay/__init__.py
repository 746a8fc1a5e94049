"""A RayCluster of its own on Kubernetes."""
