"""What moves packets: the flow tables that the relay's control machine installs its routes in."""
