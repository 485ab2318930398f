"""The worker: takes leases over one outbound stream, runs actions, and hands back results."""
