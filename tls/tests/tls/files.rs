//! What is said about files, and what a change of files does.

use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use tls::make::{Authority, Use, Validity};
use tls::{ClientAuth, FileKind, Flaws, Holder, MinVersion, Mutual, Server, ServerFiles, ServerOptions};

use crate::support::{CLUSTER, Folder, authority, expired, gateway_uri, identity, member, node_uri};

#[track_caller]
fn check(folder: &Folder, loaded: Result<Mutual, Flaws>, expected: &[(FileKind, &str)]) {
    let Flaws(flaws) = loaded.unwrap_err();
    let root = folder.path("").display().to_string();
    let found: Vec<_> = flaws.iter().map(|flaw| (flaw.file, flaw.what.replace(&root, ""))).collect();
    let expected: Vec<_> = expected.iter().map(|(file, what)| (*file, (*what).to_owned())).collect();
    assert_eq!(found, expected);
}

fn load(folder: &Folder) -> Result<Mutual, Flaws> {
    Mutual::load(folder.link_files("n"), CLUSTER, Holder::Node(1))
}

#[test]
fn each_flaw_is_told_with_its_file() {
    let folder = Folder::new();
    let missing = "cannot be read: No such file or directory (os error 2)";
    check(
        &folder,
        load(&folder),
        &[(FileKind::Certificate, missing), (FileKind::Key, missing), (FileKind::Authorities, missing)],
    );
    let ca = authority("the CA");
    folder.write_member("n", &node_uri(1), &ca);
    load(&folder).unwrap();

    folder.write("n.crt", "nothing");
    std::fs::create_dir(folder.path("dir")).unwrap();
    let no_certificate = "has no certificate (`-----BEGIN CERTIFICATE-----`)";
    check(&folder, load(&folder), &[(FileKind::Certificate, no_certificate)]);
    let files = tls::LinkFiles { certificate: folder.path("dir"), ..folder.link_files("n") };
    check(
        &folder,
        Mutual::load(files, CLUSTER, Holder::Node(1)),
        &[(FileKind::Certificate, "is not a file")],
    );
    folder.write("n.crt", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
    let unreadable = "has a certificate, number 1, that cannot be read";
    check(&folder, load(&folder), &[(FileKind::Certificate, unreadable)]);
    folder.write("n.crt", &"x".repeat((1 << 20) + 1));
    check(&folder, load(&folder), &[(FileKind::Certificate, "is larger than 1048576 bytes")]);

    folder.write_member("n", &node_uri(1), &ca);
    folder.write("n.key", "secret");
    let no_key = "has no private key (`-----BEGIN PRIVATE KEY-----`)";
    check(&folder, load(&folder), &[(FileKind::Key, no_key)]);
    folder.write("n.key", &member(&node_uri(1), &ca).key);
    check(&folder, load(&folder), &[(FileKind::Key, "is not the key of the certificate in n.crt")]);
    folder.write("n.key", &ca.key().replace("MIG", "MIH"));
    assert!(load(&folder).unwrap_err().to_string().contains("n.key has a key that cannot be used: "));
}

#[test]
fn certificates_must_be_valid_now_and_by_a_ca_that_is_trusted() {
    let folder = Folder::new();
    let ca = authority("the CA");
    folder.write("ca.crt", ca.certificate());
    let issue = |validity| {
        let purpose = Use::Member(identity(&node_uri(1)));
        folder.write_pair("n", &ca.issue("n", &purpose, validity).unwrap());
    };
    issue(expired(Duration::from_hours(72)));
    let old = "has expired: it was valid until 3 days ago";
    check(&folder, load(&folder), &[(FileKind::Certificate, old)]);
    let now = std::time::SystemTime::now();
    issue(Validity {
        not_before: now + Duration::from_secs(9015),
        not_after: now + Duration::from_secs(90_000),
    });
    let early = "is not valid yet: it will be in 2 hours; is the clock of this machine right?";
    check(&folder, load(&folder), &[(FileKind::Certificate, early)]);

    folder.write_member("n", &node_uri(1), &ca);
    folder.write("ca.crt", authority("another CA").certificate());
    let stranger =
        "has no CA that has signed our own certificate, so no other member of the cluster would take it";
    check(&folder, load(&folder), &[(FileKind::Authorities, stranger)]);
    folder.write("ca.crt", &member(&node_uri(1), &ca).certificate);
    let no_ca = format!("has the certificate of `CN={}`, which is no CA and can sign nothing", node_uri(1));
    check(&folder, load(&folder), &[(FileKind::Authorities, &no_ca)]);
    let old = Authority::new("old", expired(Duration::from_mins(30))).unwrap();
    folder.write("ca.crt", old.certificate());
    let no_valid = "has no CA that is still valid: it was valid until 30 minutes ago";
    check(&folder, load(&folder), &[(FileKind::Authorities, no_valid)]);
    // While a CA is replaced, both are there.
    folder.write("ca.crt", &(old.certificate().to_owned() + ca.certificate()));
    load(&folder).unwrap();

    folder.write_pair("n", &ca.issue("n", &Use::Client, Validity::days(1)).unwrap());
    let expected = format!("does not say `{}`: the certificate names no gaios:// URI", node_uri(1));
    check(&folder, load(&folder), &[(FileKind::Certificate, &expected)]);
    for uri in [node_uri(2), gateway_uri(), "gaios://other/node/1".to_owned()] {
        folder.write_pair("n", &member(&uri, &ca));
        let expected = format!("says `{uri}`, and this is `{}`", node_uri(1));
        check(&folder, load(&folder), &[(FileKind::Certificate, &expected)]);
    }
    let gateway = || Mutual::load(folder.link_files("n"), CLUSTER, Holder::Gateway);
    check(
        &folder,
        gateway(),
        &[(FileKind::Certificate, "says `gaios://other/node/1`, and this is `gaios://harbour/gateway/NAME`")],
    );
    folder.write_pair("n", &member(&gateway_uri(), &ca));
    assert_eq!(gateway().unwrap().identity(), identity(&gateway_uri()));
}

#[test]
fn a_change_is_taken_over_when_it_is_good_and_refused_when_not() {
    let folder = Folder::new();
    let ca = authority("the CA");
    folder.write_member("n", &node_uri(1), &ca);
    let links = load(&folder).unwrap();
    let first = links.status();
    assert_eq!((first.reloads, first.refusals), (0, 0));
    assert_eq!(first.holder, node_uri(1));
    assert_eq!(links.reload(), Ok(false), "nothing has changed");

    let old = member(&node_uri(1), &ca);
    let longer = ca.issue("n", &Use::Member(identity(&node_uri(1))), Validity::days(20)).unwrap();
    folder.write("n.crt", &longer.certificate);
    let refused = links.reload().unwrap_err();
    assert!(refused.to_string().ends_with("n.crt"), "{refused}");
    let status = links.status();
    assert_eq!((status.reloads, status.refusals, status.refused.as_ref()), (0, 1, Some(&refused)));
    assert_eq!(status.certificate_expires, first.certificate_expires, "the old one goes on");
    assert_eq!(links.reload(), Err(refused), "asked again, it says so again");
    assert_eq!(links.status().refusals, 1, "and counts it once");

    folder.write("n.key", &longer.key);
    assert_eq!(links.reload(), Ok(true));
    let status = links.status();
    assert_eq!((status.reloads, status.refusals, status.refused), (1, 1, None));
    assert!(status.certificate_expires > first.certificate_expires);

    // A change that is taken back is none.
    folder.write_pair("n", &old);
    folder.write("n.key", "gone");
    links.reload().unwrap_err();
    folder.write_pair("n", &longer);
    assert_eq!(links.reload(), Ok(false));
    assert_eq!(links.status().refused, None);
}

#[test]
fn secrets_that_everybody_can_read_are_told_and_used() {
    let folder = Folder::new();
    folder.write_member("n", &node_uri(1), &authority("the CA"));
    let mode = |mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(folder.path("n.key"), permissions).unwrap();
    };
    mode(0o640);
    assert_eq!(load(&folder).unwrap().status().warnings, []);
    mode(0o644);
    let warnings = load(&folder).unwrap().status().warnings;
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0].file, FileKind::Key);
    assert!(warnings[0].what.contains("everybody on this machine can read"), "{}", warnings[0]);
}

#[test]
fn a_door_for_clients_tells_all_flaws_at_once() {
    let folder = Folder::new();
    folder.write("s.crt", "");
    folder.write("s.key", "");
    folder.write("tickets", "# none\n");
    let options = ServerOptions {
        files: ServerFiles {
            certificate: folder.path("s.crt"),
            key: folder.path("s.key"),
            client_authorities: Some(folder.path("ca.crt")),
            ticket_keys: Some(folder.path("tickets")),
        },
        client_auth: ClientAuth::Required,
        min_version: MinVersion::Tls12,
    };
    let Flaws(flaws) = Server::load(options).unwrap_err();
    let files: Vec<_> = flaws.iter().map(|flaw| flaw.file).collect();
    let all = [FileKind::Certificate, FileKind::Key, FileKind::Authorities, FileKind::TicketKeys];
    assert_eq!(files, all, "{flaws:?}");
    let expected = "has no key: a key is 64 hexadecimal digits in a line of its own";
    assert_eq!(flaws[3].what, expected);
}
