//! Migrations are embedded at compile time by a macro, and cargo cannot see which files it read: without
//! this, a new migration would be missing from a rebuilt binary.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
