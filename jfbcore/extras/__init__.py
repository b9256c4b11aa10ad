"""What a training run may use besides the method itself."""
