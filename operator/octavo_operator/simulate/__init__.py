"""A fleet in virtual time: replicas, gateway and Kubernetes as events, under any autoscaling and routing policy."""
