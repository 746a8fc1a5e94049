"""The ground layer: errors, ids, time, storage, logging. No domain, no third party but obstore."""
