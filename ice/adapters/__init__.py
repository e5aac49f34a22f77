"""natkit's agent with the interfaces of other projects, for programs that are written for those."""
