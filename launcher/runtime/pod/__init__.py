"""What runs in a pod beside Ray: the preStop hook and the probe of `launch doctor`."""
