//! Files as a person writes them: the examples, and what is said about mistakes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use config::{ClientAuth, Config, Gateway, Given, LoadError, Name, Replica, TlsVersion};
use proptest::prelude::*;

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

#[test]
fn the_examples_load_and_agree() {
    let replicas =
        [1, 2, 3].map(|id| Replica::load(&folder(&format!("examples/replica-{id}.yaml"))).unwrap());
    let gateway = Gateway::load(&folder("examples/gateway.yaml")).unwrap();
    for (id, replica) in (1..).zip(&replicas) {
        assert_eq!(replica.node, id);
        assert_eq!(replica.display_name(), format!("node-{id}"));
        assert_eq!(replica.cluster, replicas[0].cluster);
        assert_eq!(replica.address().to_string(), replica.listen.to_string());
        assert_eq!(replica.timing.support, Duration::from_millis(350));
    }
    assert_eq!(gateway.cluster.nodes, replicas[0].cluster.nodes);
    assert_eq!(gateway.cluster.id(), replicas[0].cluster.id());
    assert_eq!(gateway.cluster.groups_or_default(), replicas[0].cluster.groups_or_default());
}

#[test]
fn every_example_is_a_configuration() {
    let mut count = 0;
    for entry in std::fs::read_dir(folder("examples")).unwrap() {
        Config::load(&entry.unwrap().path()).unwrap();
        count += 1;
    }
    assert!(count >= 4);
}

#[test]
fn the_reference_page_is_generated() {
    let page = std::fs::read_to_string(folder("../docs/configuration.md")).unwrap();
    assert!(page == config::reference(), "docs/configuration.md is out of date: run `cargo xtask docs`");
}

fn check(text: &str, expected: &str) {
    let said = match Config::parse("f.yaml", text) {
        Ok(config) => format!("{config:?}"),
        Err(problems) => problems.to_string(),
    };
    assert_eq!(said, expected.trim_matches('\n'), "{text}");
}

#[test]
fn all_mistakes_are_reported_at_once() {
    check(
        r#"
role: replica
node: 4
data_dir:
listen: localhost:2380
quota_bytes: 5
clustre: {}
timing:
  heartbeat: 300ms
  hartbeat: 1s
  election: [1s]
  support: 1ms
cluster:
  name: has spaces
  nodes:
    - {id: 1, address: a:1}
    - {id: one, address: "a"}
    - {address: a:1, port: 3}
    - 7
  groups: {id: 1}
log: {level: loud, level: info}
node: 5
"#,
        r"
f.yaml:4:9: data_dir: has no value; without the line it is as if unset
f.yaml:5:9: listen: `localhost:2380` is no IP address with a port, such as 0.0.0.0:2379 or [::]:2379
f.yaml:6:14: quota_bytes: a size needs a unit, such as 5B or 5MiB
f.yaml:7:1: clustre: is not a known field; did you mean `cluster`?
f.yaml:10:3: timing.hartbeat: is not a known field; did you mean `heartbeat`?
f.yaml:11:13: timing.election: is a list, but should be a duration (100ms, 5s, 1h30m)
f.yaml:12:12: timing.support: must be from 50ms to 30s
f.yaml:14:9: cluster.name: `has spaces` is not a name (1 to 63 letters, digits, `-`, `_`, `.`)
f.yaml:17:12: cluster.nodes[1].id: `one` is no whole number
f.yaml:17:26: cluster.nodes[1].address: `a` is not a host and port (node-1.example:2380, 10.0.0.1:2380, [::1]:2380) or the name of SRV records (_gaios-replica._tcp.example)
f.yaml:18:7: cluster.nodes[2].id: is missing
f.yaml:18:22: cluster.nodes[2].port: is not a known field; known here are id, address, region, zone
f.yaml:19:7: cluster.nodes[3]: is a single value, but should be a section with the fields id, address, region, zone
f.yaml:20:11: cluster.groups: is a section of fields, but should be a list
f.yaml:21:14: log.level: `loud` is not `error`, `warn`, `info`, `debug` or `trace`
f.yaml:21:20: log.level: is written a second time; the first is on line 21
f.yaml:22:1: node: is written a second time; the first is on line 3
",
    );
}

#[test]
fn a_field_that_was_taken_back_is_named_to_whoever_still_sets_it() {
    let cluster = "cluster: {name: c, nodes: [{id: 1, address: 'a:1'}]}\ncore_wake_latency_max: 0us\n";
    for role in ["replica\nnode: 1\ndata_dir: d", "gateway\nname: g\nadvertise_client_urls: ['http://a:1']"] {
        let problems = Config::parse("f.yaml", &format!("role: {role}\n{cluster}")).unwrap_err().to_string();
        assert!(
            problems.starts_with("f.yaml:5:1: core_wake_latency_max: is not a known field"),
            "{problems}"
        );
        assert_eq!(problems.lines().count(), 1, "{problems}");
    }
}

#[test]
fn a_node_that_other_machines_can_reach_in_the_clear_says_so() {
    let replica = |rest: &str| {
        format!(
            "role: replica\nnode: 1\ndata_dir: d\ncluster: {{name: c, nodes: [{{id: 1, address: 'a:1'}}]}}\n{rest}"
        )
    };
    for exposed in ["0.0.0.0:80", "'[::]:80'", "10.0.0.1:80"] {
        let refused =
            Replica::parse("f.yaml", &replica(&format!("listen: {exposed}"))).unwrap_err().to_string();
        assert!(
            refused.contains("f.yaml:5:9: listen: is ") && refused.contains("`insecure: true`"),
            "{refused}"
        );
        let text = replica(&format!("listen: {exposed}\ninsecure: true"));
        assert!(Replica::parse("f.yaml", &text).unwrap().is_exposed());
    }
    for near in ["127.0.0.1:80", "127.64.0.9:80", "'[::1]:80'", "'[::ffff:127.0.0.1]:80'"] {
        assert!(!Replica::parse("f.yaml", &replica(&format!("listen: {near}"))).unwrap().is_exposed());
    }
    let default = Replica::parse("f.yaml", &replica("")).unwrap();
    assert_eq!(default.listen.to_string(), "127.0.0.1:2380");
    assert!(!default.is_exposed());
}

#[test]
fn relations_between_fields() {
    let replica = |rest: &str| {
        format!(
            "role: replica\nnode: 1\ndata_dir: d\ncluster: {{name: c, nodes: [{{id: 1, address: 'a:1'}}]}}\n{rest}"
        )
    };
    check(
        &replica("timing: {heartbeat: 300ms}"),
        "
f.yaml:5:9: timing.election: is 500ms, but must be at least 900ms, three times timing.heartbeat
f.yaml:5:9: timing.support: is 350ms, but must be at least 900ms, three times timing.heartbeat
",
    );
    check(
        &replica("insecure: true\nlisten: 0.0.0.0:80\nadmin_listen: 127.0.0.1:80"),
        "f.yaml:7:15: admin_listen: is 127.0.0.1:80, which `listen`, 0.0.0.0:80, takes already",
    );
    let gateway = |rest: &str| {
        format!(
            "role: gateway\nname: g\nadvertise_client_urls: ['http://g:1']\n\
             cluster: {{name: c, nodes: [{{id: 1, address: 'a:1'}}]}}\n{rest}"
        )
    };
    check(
        &gateway("listen: 127.0.0.1:80\nadmin_listen: '[::]:80'"),
        "f.yaml:6:15: admin_listen: is [::]:80, which `listen`, 127.0.0.1:80, takes already",
    );
    check(
        &gateway("listen: 127.0.0.1:80\nadmin_listen: '[::ffff:127.0.0.1]:80'"),
        "f.yaml:6:15: admin_listen: is [::ffff:127.0.0.1]:80, which `listen`, 127.0.0.1:80, takes already",
    );
    for other in ["'[::1]:80'", "127.0.0.1:81", "127.0.0.1:0"] {
        Replica::parse(
            "f.yaml",
            &replica(&format!("insecure: true\nlisten: 0.0.0.0:80\nadmin_listen: {other}")),
        )
        .unwrap();
    }
    check(
        &replica("region: r").replace("'a:1'", "'a:1', region: s"),
        "f.yaml:5:9: region: is `r`, but cluster.nodes says `s` of this node",
    );
    let placed = Replica::parse("f.yaml", &replica("zone: z").replace("'a:1'", "'a:1', region: s")).unwrap();
    assert_eq!(placed.region().map(|name| name.as_str()), Some("s"));
    assert_eq!(placed.zone().map(|name| name.as_str()), Some("z"));
    check(
        "role: replica\nnode: 3\ndata_dir: d\ncluster: {name: c, seeds: ['a:1']}",
        "f.yaml:4:10: cluster: has no nodes, of which this is one",
    );
    check(
        "role: gateway\nname: g\nadvertise_client_urls: ['http://g:1']\ncluster: {name: c}",
        "f.yaml:4:10: cluster.nodes: needs at least one node, or `seeds` to find them by",
    );
    check(
        "role: gateway\nname: g\nadvertise_client_urls: ['http://g:1']\ncluster: {name: c, seeds: [a:1, a:1]}",
        "f.yaml:4:27: cluster.seeds: has a:1 twice",
    );
    Gateway::parse(
        "f.yaml",
        "role: gateway\nname: g\nadvertise_client_urls: ['http://g:1']\ncluster: {name: c, seeds: [_x._tcp.y]}",
    )
    .unwrap();
    check(
        "role: replica\nnode: 3\ndata_dir: d\ncluster: {name: c, nodes: [{id: 1, address: 'a:1'}]}",
        "f.yaml:2:7: node: 3 is not one of cluster.nodes, which are 1",
    );
    check(
        "role: replica\nnode: 1\ndata_dir: d\ncluster:\n  name: c\n  nodes: [{id: 1, address: 'a:1'}, {id: 1, address: 'a:1'}]\n  \
         groups: [{id: 1, voters: [1, 1]}, {id: 1, voters: [2]}, {id: 2, voters: []}]",
        "
f.yaml:7:28: cluster.groups[0].voters: has the node 1 twice
f.yaml:7:75: cluster.groups[2].voters: must be 1 to 9 nodes
",
    );
    check(
        "role: replica\nnode: 1\ndata_dir: d\ncluster:\n  name: c\n  nodes: [{id: 1, address: 'a:1'}, {id: 1, address: 'a:1'}]\n  \
         groups: [{id: 1, voters: [1]}, {id: 1, voters: [2]}]",
        "
f.yaml:6:10: cluster.nodes: has the address a:1 twice
f.yaml:6:10: cluster.nodes: has the id 1 twice
f.yaml:7:11: cluster.groups: group 1 has the voter 2, which is not one of nodes
f.yaml:7:11: cluster.groups: has the id 1 twice
",
    );
    check(
        "role: gateway\nname: g\nadvertise_client_urls: []\nmembers: [{name: h, client_urls: []}]\n\
         \
         cluster: {name: c, nodes: [{id: 1, address: 'a:1'}]}",
        "
f.yaml:3:24: advertise_client_urls: needs at least one URL
f.yaml:4:10: members: does not name this gateway, `g`
",
    );
}

#[test]
fn settings_of_tls_fit_each_other() {
    let gateway = |url: &str, tls: &str| {
        format!(
            "role: gateway\nname: g\nadvertise_client_urls: ['{url}']\n\
             cluster: {{name: c, nodes: [{{id: 1, address: 'a:1'}}]}}\n{tls}"
        )
    };
    let secure = |tls: &str| gateway("https://g:1", tls);
    Gateway::parse("f.yaml", &secure("client_tls: {cert_file: c, key_file: k}")).unwrap();
    let all = "client_tls: {cert_file: c, key_file: k, client_ca_file: ca, client_auth: required, min_version: 1.3, \
               ticket_keys_file: t}\nlink_tls: {cert_file: c, key_file: k, ca_file: ca}";
    let read = Gateway::parse("f.yaml", &secure(all)).unwrap().client_tls.unwrap();
    assert_eq!((read.client_auth, read.min_version), (ClientAuth::Required, TlsVersion::Tls13));
    check(&secure("client_tls:\n  cert_file: c"), "f.yaml:6:3: client_tls.key_file: is missing");
    check(
        &secure("client_tls:\n  cert_file: c\n  key_file: k\n  client_auth: sometimes\n  min_version: 1.1"),
        "
f.yaml:8:16: client_tls.client_auth: `sometimes` is not `off`, `optional` or `required`
f.yaml:9:16: client_tls.min_version: `1.1` is not `1.2` or `1.3`
",
    );
    for auth in ["optional", "required"] {
        check(
            &secure(&format!("client_tls:\n  cert_file: c\n  key_file: k\n  client_auth: {auth}")),
            &format!(
                "f.yaml:8:16: client_tls.client_auth: is {auth}, but no `client_ca_file` says whose certificates are good"
            ),
        );
    }
    check(
        &secure("client_tls:\n  cert_file: c\n  key_file: k\n  client_ca_file: ca"),
        "f.yaml:8:19: client_tls.client_ca_file: is of no use while `client_auth` is off: say optional or required, or \
         leave it out",
    );
    check(
        &gateway("http://g:1", "client_tls: {cert_file: c, key_file: k}\nmembers: [{name: g, client_urls: ['http://g:1']}]"),
        "
f.yaml:3:24: advertise_client_urls: has http://g:1, but with `client_tls` clients are served over https:// only
f.yaml:6:10: members: has http://g:1, but with `client_tls` clients are served over https:// only
",
    );
    check(
        &secure(""),
        "f.yaml:3:24: advertise_client_urls: has https://g:1, but without `client_tls` clients are served over http:// only",
    );
    check(
        &secure("client_tls: {cert_file: c, key_file: k}\nlink_tls: {cert: c, key_file: k}"),
        "
f.yaml:6:11: link_tls.ca_file: is missing
f.yaml:6:11: link_tls.cert_file: is missing
f.yaml:6:12: link_tls.cert: is not a known field; known here are cert_file, key_file, ca_file
",
    );
}

#[test]
fn nodes_may_share_a_file_with_the_paths_of_their_certificates() {
    let text = "role: replica\nnode: 7\ndata_dir: d\ncluster: {name: c, nodes: [{id: 7, address: 'a:1'}]}\n\
                link_tls: {cert_file: '/tls/{node}/tls.crt', key_file: '/tls/node-{node}.key', ca_file: /tls/ca.crt}";
    let tls = Replica::parse("f.yaml", text).unwrap().link_tls.unwrap();
    let paths = [tls.cert_file, tls.key_file, tls.ca_file].map(|path| path.display().to_string());
    assert_eq!(paths, ["/tls/7/tls.crt", "/tls/node-7.key", "/tls/ca.crt"]);
}

#[test]
fn what_is_found_further_is_told_with_its_place() {
    let path = std::env::temp_dir().join(format!("gaios-config-places-{}.yaml", std::process::id()));
    let text = "role: replica\nnode: 1\ndata_dir: d\ncluster: {name: c, nodes: [{id: 1, address: 'a:1'}]}\n";
    std::fs::write(&path, text).unwrap();
    let look = |config: &Config| {
        assert!(matches!(config, Config::Replica(_)));
        vec![
            ("link_tls.key_file".to_owned(), "is not there".to_owned()),
            ("cluster.name".to_owned(), "is odd".to_owned()),
        ]
    };
    let Err(LoadError::Invalid(problems)) = Config::load_and_look(&path, &Given::default(), look) else {
        panic!("problems were found")
    };
    let places: Vec<_> = problems.list.iter().map(ToString::to_string).collect();
    assert_eq!(places, ["1:1: link_tls.key_file: is not there", "4:17: cluster.name: is odd"]);
    std::fs::remove_file(path).unwrap();
}

#[test]
fn a_file_of_the_other_role_says_so() {
    let text = std::fs::read_to_string(folder("examples/gateway.yaml")).unwrap();
    let problems = Replica::parse("g.yaml", &text).unwrap_err().to_string();
    assert!(problems.contains("node: is missing"), "{problems}");
    assert!(problems.contains("links_per_node: is not a known field"), "{problems}");
}

#[test]
fn what_is_not_one_yaml_document() {
    check("a: [1, 2", "f.yaml:1:4: not YAML: unclosed bracket '['");
    check("a: *b", "f.yaml:1:4: not YAML: while parsing node, found unknown anchor");
    check("a: &x 1\nb: *x", "f.yaml:2:4: aliases (`*name`) are not supported: write the value out");
    check("a: !!str 1", "f.yaml:1:10: tags (`!name`) are not supported");
    check(
        "role: replica\n---\nrole: gateway",
        "f.yaml:2:1: a second document: one file holds one configuration",
    );
    check("[a]: 1", "f.yaml:1:1: a field's name must be a word");
    check(&format!("{}{}", "[".repeat(40), "]".repeat(40)), "f.yaml:1:17: nested more than 16 levels deep");
    for text in ["", "# nothing\n", "~"] {
        let problems = Config::parse("f", text).unwrap_err();
        assert!(problems.to_string().contains("role: is missing"), "{problems}");
    }
    let path = std::env::temp_dir().join(format!("gaios-config-{}.yaml", std::process::id()));
    std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = Config::load(&path).unwrap_err();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(error, LoadError::Io { .. }), "{error}");
    assert!(matches!(Config::load(Path::new("/nonexistent")), Err(LoadError::Io { .. })));
}

/// Large files made of what parsers stumble over are answered about at once.
#[test]
fn large_hostile_files_are_quick() {
    let started = std::time::Instant::now();
    for piece in [
        "[", "{", "- ", "a: ", "? ", "'", "\"", "&a ", "!", "\n ", "a\n", "#", "a: b\n", "- [", "|\n", "[a,",
        "{a: b,",
    ] {
        let mut text = piece.repeat((1 << 18) / piece.len());
        assert!(Config::parse("f", &text).is_err());
        text.push('\n');
        let lines: String = text.chars().take(1 << 15).flat_map(|c| [c, '\n']).collect();
        assert!(Config::parse("f", &lines).is_err());
    }
    // Unoptimised and on a busy machine; a quadratic parser would take hours.
    assert!(started.elapsed() < Duration::from_secs(60), "{:?}", started.elapsed());
}

/// Pieces that together often make nearly valid files.
const PIECES: &[&str] = &[
    "role: replica",
    "role: gateway",
    "node: 1",
    "cluster:",
    "nodes:",
    "- ",
    "{",
    "}",
    "[",
    "]",
    ": ",
    "id: 1",
    "address: a:1",
    "\n",
    "\n  ",
    "\n    ",
    "timing:",
    "heartbeat: 1s",
    "'",
    "\"",
    "&a ",
    "*a",
    "!!int ",
    "---",
    "...",
    "# x",
    "|",
    ">",
    "?",
    "\t",
    "99999999999999999999",
    "é",
    "\u{0}",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_panics(pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..60)) {
        let _ = Config::parse("f", &pieces.concat());
    }

    #[test]
    fn damaged_examples_do_not_panic(cut in 0usize..2000, insert in ".{0,4}", remove in 0usize..20) {
        let text = include_str!("../examples/gateway.yaml");
        let mut chars: Vec<char> = text.chars().collect();
        let at = cut % chars.len();
        let end = (at + remove).min(chars.len());
        chars.splice(at..end, insert.chars());
        let _ = Config::parse("f", &chars.into_iter().collect::<String>());
    }
}

#[test]
fn what_is_given_stands_in_place_of_the_files_fields() {
    let file = "role: replica\ndata_dir: x\nname: from-the-file\ncluster: {name: x, nodes: [{id: 1, address: 'a:1'}, {id: 2, address: 'a:2'}]}\n";
    let check = |node: &str, name: &str, expected: &str| {
        let given = Given { node: Some(node.to_owned()), name: Some(name.to_owned()), ..Given::default() };
        let said = match Config::parse_with("f.yaml", file, &given) {
            Ok(Config::Replica(replica)) => format!("{} {}", replica.node, replica.display_name()),
            Ok(Config::Gateway(_)) => "a gateway".to_owned(),
            Err(problems) => problems.to_string(),
        };
        assert_eq!(said, expected);
    };
    check("2", "pod-2", "2 pod-2");
    check("2", "", "2 from-the-file");
    check("", "pod", "f.yaml:1:1: node: is missing");
    let name = "`a b` is not a name (1 to 63 letters, digits, `-`, `_`, `.`)";
    check("1", "a b", &format!("f.yaml:3:7: name: {name} (given by --name or GAIOS_NAME)"));
    check(
        "3",
        "",
        "f.yaml:1:1: node: 3 is not one of cluster.nodes, which are 1, 2 (given by --node or GAIOS_NODE)",
    );
    check("two", "", "f.yaml:1:1: node: `two` is no whole number (given by --node or GAIOS_NODE)");
    // A gateway has no such field, and says so.
    let gateway = "role: gateway\nname: g\nadvertise_client_urls: ['http://a:1']\ncluster: {name: x, nodes: [{id: 1, address: 'a:1'}]}\n";
    let zone = |zone: &str| Given {
        name: Some("pod-7".to_owned()),
        zone: Some(zone.to_owned()),
        ..Given::default()
    };
    let given = zone("a");
    match Config::parse_with("f.yaml", gateway, &given) {
        Ok(Config::Gateway(gateway)) => {
            assert_eq!((gateway.name.as_str(), gateway.zone), ("pod-7", Some(Name::new("a").unwrap())));
        }
        other => panic!("{other:?}"),
    }
    let problems = Config::parse_with("f.yaml", gateway, &zone("a b")).unwrap_err().to_string();
    assert!(problems.contains("zone: `a b` is not a name") && problems.contains("GAIOS_ZONE"), "{problems}");
    // What is no section stays the mistake that it is.
    let problems = Config::parse_with("f.yaml", "7", &given).unwrap_err();
    assert!(problems.to_string().contains("is a single value"), "{problems}");
}

#[test]
fn two_configurations_are_compared_by_field() {
    let gateway = |fields: &str| {
        let text = format!(
            "role: gateway\nname: g\nadvertise_client_urls: ['http://g:1']\n\
             cluster: {{name: c, nodes: [{{id: 1, address: 'a:1'}}]}}\n{fields}"
        );
        Gateway::parse("f.yaml", &text).unwrap()
    };
    let base = gateway("limits: {max_txn_ops: 5}\nlog: {level: info}");
    assert!(gateway("limits: {max_txn_ops: 5}").changed_from(&base).is_empty(), "a default that is written");
    let other = gateway("region: eu\nlimits: {max_txn_ops: 6, request_timeout: 1s}\nlisten: '127.0.0.1:1'");
    assert_eq!(
        other.changed_from(&base),
        ["region", "listen", "limits.max_txn_ops", "limits.request_timeout"]
    );
}

#[test]
fn an_even_number_of_voters_is_allowed_and_told() {
    let advice = |groups: &str| {
        let nodes = "[{id: 1, address: 'a:1'}, {id: 2, address: 'b:1'}, {id: 3, address: 'c:1'}]";
        let text =
            format!("role: replica\nnode: 1\ndata_dir: d\ncluster: {{name: c, nodes: {nodes}{groups}}}");
        Replica::parse("f.yaml", &text).unwrap().cluster.advice()
    };
    assert!(advice("").is_empty());
    assert!(advice(", groups: [{id: 1, voters: [2]}]").is_empty());
    assert_eq!(
        advice(", groups: [{id: 1, voters: [1, 2, 3]}, {id: 7, voters: [1, 3]}]"),
        ["group 7 has 2 voters: with 1 it would survive as many failures, and write faster"]
    );
    // Who finds nodes by seeds does not know yet who votes.
    let text =
        "role: gateway\nname: g\nadvertise_client_urls: ['http://a:1']\ncluster: {name: c, seeds: ['a:1']}\n";
    assert!(Gateway::parse("f.yaml", text).unwrap().cluster.advice().is_empty());
}
