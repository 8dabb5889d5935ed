//! Tasks of the workspace.
fn main() {
    std::fs::write("docs/configuration.md", config::reference()).expect("docs/ is there");
}
