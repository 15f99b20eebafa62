//! What runs inside the child process: all of burn.
