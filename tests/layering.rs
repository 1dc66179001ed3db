//! The shape of the source: imports run downward, files stay readable.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::{Path, PathBuf};

    /// What each module may import. The order is that of the table in `lib.rs`.
    const MAY_IMPORT: &[(&str, &[&str])] = &[
        (
            "cli",
            &[
                "arena", "crypt", "device", "format", "geometry", "keyslot", "queue", "request",
                "sandbox", "secret", "store", "volume", "zone",
            ],
        ),
        (
            "device",
            &[
                "geometry", "guard", "limit", "queue", "request", "store", "volume",
            ],
        ),
        (
            "queue",
            &[
                "geometry", "guard", "limit", "mutant", "request", "store", "volume", "zone",
            ],
        ),
        (
            "volume",
            &[
                "arena",
                "crypt",
                "format",
                "geometry",
                "integrity",
                "keyslot",
                "limit",
                "mutant",
                "request",
                "secret",
                "store",
                "zone",
            ],
        ),
        ("request", &["geometry", "zone"]),
        (
            "keyslot",
            &["arena", "crypt", "geometry", "integrity", "secret", "zone"],
        ),
        ("integrity", &["crypt", "geometry", "zone"]),
        (
            "format",
            &["arena", "crypt", "geometry", "secret", "store", "zone"],
        ),
        ("secret", &["arena", "geometry", "zone"]),
        ("zone", &["geometry", "mutant"]),
        ("crypt", &["arena"]),
        ("store", &["guard", "mutant"]),
        ("sandbox", &[]),
        ("arena", &[]),
        ("limit", &[]),
        ("guard", &[]),
        ("mutant", &[]),
        ("geometry", &[]),
    ];

    /// Lines of a source file, tests included, above which it should become two.
    const MAX_LINES: usize = 800;

    fn sources(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(sources(&path));
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
        found.sort();
        found
    }

    fn src() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
    }

    fn module_of(file: &Path) -> String {
        let inside = file.strip_prefix(src()).unwrap();
        let first = inside.components().next().unwrap().as_os_str();
        first.to_str().unwrap().trim_end_matches(".rs").to_owned()
    }

    /// Modules named after `crate::` in the product's part of a file.
    fn imports(text: &str) -> BTreeSet<String> {
        let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let code = product
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"));
        code.flat_map(|line| line.split("crate::").skip(1))
            .map(|rest| {
                let end = rest.find(|c: char| !c.is_ascii_lowercase() && c != '_');
                rest[..end.unwrap_or(rest.len())].to_owned()
            })
            .filter(|name| !name.is_empty())
            .collect()
    }

    #[test]
    fn no_import_runs_upward() {
        let mut seen = BTreeSet::new();
        for file in sources(&src()) {
            let module = module_of(&file);
            if ["lib", "main"].contains(&module.as_str()) || file.ends_with("tests.rs") {
                continue;
            }
            let allowed = MAY_IMPORT.iter().find(|(name, _)| *name == module);
            let (_, allowed) = allowed.unwrap_or_else(|| panic!("{module} is not in the list"));
            for import in imports(&fs::read_to_string(&file).unwrap()) {
                assert!(
                    import == module || allowed.contains(&import.as_str()),
                    "{} imports {import}",
                    file.display()
                );
            }
            seen.insert(module);
        }
        assert_eq!(seen.len(), MAY_IMPORT.len(), "{seen:?}");
    }

    #[test]
    fn vhost_user_is_named_in_the_device_alone() {
        for file in sources(&src()) {
            let module = module_of(&file);
            let text = fs::read_to_string(&file).unwrap();
            if module != "device" {
                assert!(!text.contains("use vhost::"), "{}", file.display());
            }
        }
    }

    /// A comparison that stops at the first difference tells, by its time, how far a guess was right.
    #[test]
    fn macs_are_compared_in_constant_time() {
        let words = [
            "mac",
            "macs",
            "tag",
            "carried_mac",
            "finalize",
            "into_bytes",
        ];
        let mut seen = 0;
        for file in sources(&src()) {
            if file.ends_with("tests.rs") {
                continue;
            }
            let text = fs::read_to_string(&file).unwrap();
            let product = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
            for line in product.lines().map(str::trim) {
                let mut names = line.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
                let names_one = names.any(|name| words.contains(&name));
                seen += usize::from(names_one);
                // A CRC is no secret.
                let is_crc = line.contains("crc64(");
                let compares = line.contains(" == ") || line.contains(" != ");
                let is_comment = line.starts_with("//");
                assert!(
                    !names_one || !compares || is_crc || is_comment,
                    "{}: {line}",
                    file.display()
                );
            }
        }
        assert!(seen > 20, "{seen} lines name a MAC or a tag");
    }

    #[test]
    fn files_stay_readable() {
        for file in sources(&src()) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= MAX_LINES, "{}: {lines} lines", file.display());
        }
    }

    #[test]
    fn unsafe_stands_only_where_a_module_opts_in() {
        let mut opted_in = 0;
        for file in sources(&src()) {
            let text = fs::read_to_string(&file).unwrap();
            let uses = text
                .lines()
                .any(|line| line.contains("unsafe {") || line.contains("unsafe fn"));
            let opts = text.contains("unsafe_code");
            opted_in += usize::from(opts);
            assert!(!uses || opts, "{}", file.display());
        }
        assert!(opted_in > 0);
    }
}
