"""One module a version. What is released is never changed: a change is a new one."""
