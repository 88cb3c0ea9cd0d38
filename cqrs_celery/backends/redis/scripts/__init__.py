"""The Lua operations of the Redis event store; they stand on the queue's."""
