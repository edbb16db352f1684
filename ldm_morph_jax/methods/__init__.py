"""What can register: every method, learned or iterative, is (moving, fixed) -> displacement."""
