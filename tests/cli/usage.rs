//! Help, version, and what is no command line.

use super::bench::Bench;

#[test]
fn help_teaches_and_version_answers() {
    let bench = Bench::new();
    let help = bench.succeed(&["--help"]).out;
    for code in 0..=8 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    for command in [
        vec!["create"],
        vec!["serve"],
        vec!["inspect"],
        vec!["zones"],
        vec!["check"],
        vec!["key", "add"],
        vec!["key", "remove"],
        vec!["key", "list"],
    ] {
        let line: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let help = bench.succeed(&line).out;
        let example = format!("\n  zonevault {} ", command.join(" "));
        assert!(help.contains(&example), "{help}");
    }
    let version = bench.succeed(&["--version"]).out;
    assert_eq!(
        version,
        format!("zonevault {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn what_is_not_a_command_line_is_refused() {
    let bench = Bench::new();
    bench.refuse(&["nonsense"], 2, "nonsense");
    bench.refuse(&["--nonsense"], 2, "--nonsense");
    bench.refuse(&["create", "--nonsense"], 2, "zonevault create --help");
    bench.refuse(&["create", "new.img"], 2, "--size");
    bench.refuse(&["inspect"], 2, "<IMAGE>");
    bench.refuse(&["zones", "disk.img", "--json", "--map"], 2, "--map");
    bench.refuse(&["key", "remove", "disk.img", "one"], 2, "one");
    for line in [["key"].as_slice(), &[]] {
        assert_eq!(bench.run(line).code, 2);
    }
}
