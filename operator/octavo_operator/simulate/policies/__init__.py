"""Autoscalers, ours and others', as policies of the simulator."""
