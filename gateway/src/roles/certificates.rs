//! The certificates of a role: what its configuration says of them, made into doors, and what is wrong with their files told
//! by field.

use config::{ClientAuth, ClientTls, Config, Gateway, LinkTls, Replica, TlsVersion};
use tls::{FileKind, Flaws, Holder, LinkFiles, MinVersion, Mutual, Server, ServerFiles, ServerOptions};

use super::Failure;

/// The gateway's door for clients, if it is one of TLS.
pub(crate) fn client_door(config: &Gateway) -> Result<Option<Server>, Failure> {
    let Some(tls) = &config.client_tls else { return Ok(None) };
    let server = Server::load(server_options(tls)).map_err(|flaws| failure(client_problems(&flaws)))?;
    for warning in server.status().warnings {
        tracing::warn!("{warning}");
    }
    Ok(Some(server))
}

/// What is wrong with the files that a configuration names: fields, and what.
pub(crate) fn problems(config: &Config) -> Vec<(String, String)> {
    match config {
        Config::Gateway(gateway) => {
            let client = gateway.client_tls.as_ref().map(|tls| Server::load(server_options(tls)));
            let client = client.and_then(Result::err).map(|flaws| client_problems(&flaws));
            let link =
                link_problems_of(gateway.link_tls.as_ref(), gateway.cluster.name.as_str(), Holder::Gateway);
            client.into_iter().flatten().chain(link).collect()
        }
        Config::Replica(Replica { link_tls, cluster, node, .. }) => {
            link_problems_of(link_tls.as_ref(), cluster.name.as_str(), Holder::Node(*node))
        }
    }
}

fn link_problems_of(tls: Option<&LinkTls>, cluster: &str, holder: Holder) -> Vec<(String, String)> {
    let loaded = tls.map(|tls| Mutual::load(link_files(tls), cluster, holder));
    loaded.and_then(Result::err).map(|flaws| link_problems(&flaws)).unwrap_or_default()
}

/// As words for an operator whose process does not start.
fn failure(problems: Vec<(String, String)>) -> Failure {
    let problems: Vec<_> = problems.into_iter().map(|(field, what)| format!("{field}: {what}")).collect();
    problems.join("\n").into()
}

fn client_problems(Flaws(flaws): &Flaws) -> Vec<(String, String)> {
    let field = |file| match file {
        FileKind::Certificate => "cert_file",
        FileKind::Key => "key_file",
        FileKind::Authorities => "client_ca_file",
        FileKind::TicketKeys => "ticket_keys_file",
    };
    flaws.iter().map(|flaw| (format!("client_tls.{}", field(flaw.file)), flaw.to_string())).collect()
}

fn link_problems(Flaws(flaws): &Flaws) -> Vec<(String, String)> {
    let field = |file| match file {
        FileKind::Certificate => "cert_file",
        FileKind::Key => "key_file",
        // Links have no tickets.
        FileKind::Authorities | FileKind::TicketKeys => "ca_file",
    };
    flaws.iter().map(|flaw| (format!("link_tls.{}", field(flaw.file)), flaw.to_string())).collect()
}

fn server_options(tls: &ClientTls) -> ServerOptions {
    ServerOptions {
        files: ServerFiles {
            certificate: tls.cert_file.clone(),
            key: tls.key_file.clone(),
            client_authorities: tls.client_ca_file.clone(),
            ticket_keys: tls.ticket_keys_file.clone(),
        },
        client_auth: match tls.client_auth {
            ClientAuth::Off => tls::ClientAuth::Off,
            ClientAuth::Optional => tls::ClientAuth::Optional,
            ClientAuth::Required => tls::ClientAuth::Required,
        },
        min_version: match tls.min_version {
            TlsVersion::Tls12 => MinVersion::Tls12,
            TlsVersion::Tls13 => MinVersion::Tls13,
        },
    }
}

fn link_files(tls: &LinkTls) -> LinkFiles {
    LinkFiles {
        certificate: tls.cert_file.clone(),
        key: tls.key_file.clone(),
        authorities: tls.ca_file.clone(),
    }
}
