//! Secrets of the Kubernetes cluster around this pod, by its API: read, made and replaced, with the rights of the pod's service
//! account. HTTP/1.1 over TLS, a connection for each question, bounded in time and size.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tls::{Client, ClientOptions};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Failure;

/// Where the kubelet tells a process of the API.
const HOST_VARIABLE: &str = "KUBERNETES_SERVICE_HOST";
const PORT_VARIABLE: &str = "KUBERNETES_SERVICE_PORT";
/// From the connection to the last byte of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// A Secret holds at most 1 MiB, which base64 makes a third longer.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// The API, and who asks it.
pub(crate) struct Api {
    /// An address, or a name; what its certificate must say.
    host: String,
    port: u16,
    namespace: String,
    token: String,
    client: Client,
}

/// A Secret, as the API has it: what is not ours in there stays.
#[derive(Debug)]
pub(crate) struct Secret {
    name: String,
    object: Value,
    /// Whether the API knows it.
    exists: bool,
}

impl Api {
    /// The API of the cluster around this pod, asked as the service account whose files are in `account`: `token`, `ca.crt`
    /// and `namespace`.
    pub(crate) fn around_us(account: &Path) -> Result<Api, Failure> {
        let variable = |name: &str| {
            std::env::var(name).map_err(|_| format!("{name} is not set: this is for pods of Kubernetes"))
        };
        let file = |name: &str| {
            let path = account.join(name);
            fs::read_to_string(&path).map_err(|error| format!("{}: {error}", path.display()))
        };
        let port = variable(PORT_VARIABLE)?;
        let port = port.parse().map_err(|_| format!("{PORT_VARIABLE}: `{port}` is no port"))?;
        let options = ClientOptions {
            protocols: vec![b"http/1.1".to_vec()],
            ..ClientOptions::new(account.join("ca.crt"))
        };
        Ok(Api {
            host: variable(HOST_VARIABLE)?,
            port,
            namespace: file("namespace")?.trim().to_owned(),
            token: file("token")?.trim().to_owned(),
            client: Client::load(&options)?,
        })
    }

    /// The Secret of that name; an empty one that is still to be made, if there is none.
    pub(crate) async fn read(&self, name: &str) -> Result<Secret, Failure> {
        let (status, object) = self.ask(Method::GET, &self.path(Some(name)), None).await?;
        if status == StatusCode::NOT_FOUND {
            let metadata = json!({"name": name, "labels": {"app.kubernetes.io/managed-by": "gaios"}});
            let object =
                json!({"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata});
            return Ok(Secret { name: name.to_owned(), object, exists: false });
        }
        if status != StatusCode::OK || !object["metadata"].is_object() {
            return Err(self.refused(&format!("read the Secret {name}"), status, &object));
        }
        Ok(Secret { name: name.to_owned(), object, exists: true })
    }

    /// Makes or replaces it. It fails if somebody else has done so since it was read.
    pub(crate) async fn write(&self, secret: &Secret) -> Result<(), Failure> {
        let Secret { name, object, exists } = secret;
        let (method, path, done) = if *exists {
            (Method::PUT, self.path(Some(name)), StatusCode::OK)
        } else {
            (Method::POST, self.path(None), StatusCode::CREATED)
        };
        match self.ask(method, &path, Some(object)).await? {
            (status, _) if status == done => Ok(()),
            (StatusCode::CONFLICT, _) => {
                Err(format!("somebody else has changed the Secret {name} meanwhile: run this again").into())
            }
            (status, answer) => Err(self.refused(&format!("write the Secret {name}"), status, &answer)),
        }
    }

    fn path(&self, name: Option<&str>) -> String {
        let all = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        name.map_or_else(|| all.clone(), |name| format!("{all}/{name}"))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), Failure> {
        let asked = timeout(ANSWER_TIMEOUT, self.exchange(method, path, body)).await;
        let answer = asked.map_err(|_| format!("no answer within {ANSWER_TIMEOUT:?}").into());
        answer.and_then(|answer| answer).map_err(|error: Failure| {
            format!("the API of Kubernetes at {}:{}: {error}", self.host, self.port).into()
        })
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(StatusCode, Value), Failure> {
        let socket = TcpStream::connect((self.host.as_str(), self.port)).await?;
        let stream = self.client.connect(&self.host, socket).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let moving = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, format!("{}:{}", self.host, self.port))
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::new(body.map(Value::to_string).unwrap_or_default().into()))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await?.to_bytes();
        moving.abort();
        Ok((status, serde_json::from_slice(&body).unwrap_or_default()))
    }

    /// In the words of the API, if it has some.
    fn refused(&self, what: &str, status: StatusCode, answer: &Value) -> Failure {
        let words = answer["message"].as_str().map(|words| format!(": {words}")).unwrap_or_default();
        format!("cannot {what} in namespace {}: {status}{words}", self.namespace).into()
    }
}

impl Secret {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn exists(&self) -> bool {
        self.exists
    }

    /// What it holds that is text, as all that certificates are made of is.
    pub(crate) fn files(&self) -> BTreeMap<String, String> {
        let data = self.object["data"].as_object().into_iter().flatten();
        let text = data.filter_map(|(name, encoded)| {
            let bytes = BASE64_STANDARD.decode(encoded.as_str()?).ok()?;
            Some((name.clone(), String::from_utf8(bytes).ok()?))
        });
        text.collect()
    }

    /// Puts these files into it, beside the others that are there. Tells whether that changes anything.
    pub(crate) fn set(&mut self, files: &BTreeMap<String, String>) -> bool {
        let there = self.files();
        let changes = files.iter().any(|(name, text)| there.get(name) != Some(text));
        if !self.object["data"].is_object() {
            self.object["data"] = json!({});
        }
        for (name, text) in files {
            self.object["data"][name] = BASE64_STANDARD.encode(text).into();
        }
        changes
    }
}
