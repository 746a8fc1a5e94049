"""The generation protocol: events, decisions and messages. Pure: no clock, no store, no Ray."""
