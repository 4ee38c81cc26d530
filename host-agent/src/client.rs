//! The client side of the API, for `oht`: HTTP/1.1 over the AF_UNIX socket, one connection for each request, or for each
//! stream of events.

use std::{io, path::PathBuf, time::Duration};

use futures::StreamExt as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{net::UnixStream, time::timeout};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _, error::ProtocolError},
};
use wire::VmName;

use crate::{events::Event, status::Problem};

/// Seconds that an answer may take: removing a VM waits for its port to end.
const ANSWER_S_MAX: u64 = 15;

/// Bytes of the longest answer: a thousand circuits, or 20,000 routes.
const ANSWER_BYTES_MAX: usize = 8 << 20;

/// An agent, by its socket, and the token to show to it.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
    token: Option<String>,
}

/// Why there is no answer, or not the one that was wished for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("the agent is not running (nobody answers on {path}): start it with `oht up`")]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The socket may not be opened.
    #[error("{0} may not be opened: it belongs to another user (run `oht` as the user who runs the agent)")]
    Forbidden(PathBuf),
    /// The token is none.
    #[error("what stands in the token's file is no token")]
    Token,
    /// Too slow.
    #[error("the agent did not answer within {ANSWER_S_MAX} s: see its log")]
    TimedOut,
    /// The exchange broke.
    #[error("the exchange with the agent broke: {0}")]
    Http(String),
    /// The agent says no, and why.
    #[error("{}", .0.detail)]
    Problem(Problem),
    /// An answer of another shape.
    #[error("the agent's answer is not understood: are `oht` and the agent of the same version?")]
    Json(#[source] serde_json::Error),
}

impl Client {
    /// The agent whose API is at `socket`.
    #[must_use]
    pub fn new(socket: PathBuf) -> Client {
        Client { socket, token: None }
    }

    /// The same, asked with a token: for who may not do everything.
    #[must_use]
    pub fn with_token(self, token: String) -> Client {
        Client { token: Some(token), ..self }
    }

    /// Asks for what is at `path`.
    ///
    /// # Errors
    /// When there is no answer, or it is a problem.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let bytes = self.request(Method::GET, path, Vec::new()).await?;
        serde_json::from_slice(&bytes).map_err(ClientError::Json)
    }

    /// Asks for the text at `path`.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn text(&self, path: &str) -> Result<String, ClientError> {
        let bytes = self.request(Method::GET, path, Vec::new()).await?;
        String::from_utf8(bytes.to_vec()).map_err(|error| ClientError::Http(error.to_string()))
    }

    /// Sends `body` and takes the answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        self.send(Method::POST, path, body).await
    }

    /// Sends `body` by another method and takes the answer.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn send<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Json)?;
        let bytes = self.request(method, path, body).await?;
        serde_json::from_slice(&bytes).map_err(ClientError::Json)
    }

    /// Sends `body`; the answer has none.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn tell(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        let body = serde_json::to_vec(body).map_err(ClientError::Json)?;
        self.request(Method::POST, path, body).await.map(drop)
    }

    /// A request whose answer has no body: `DELETE`, or `POST` without one.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn order(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.request(method, path, Vec::new()).await.map(drop)
    }

    async fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Bytes, ClientError> {
        let exchange = timeout(Duration::from_secs(ANSWER_S_MAX), self.exchange(method, path, body));
        let (status, bytes) = exchange.await.map_err(|_| ClientError::TimedOut)??;
        if status.is_success() {
            return Ok(bytes);
        }
        let problem = serde_json::from_slice(&bytes).map_err(ClientError::Json)?;
        Err(ClientError::Problem(problem))
    }

    /// What happens from now on, of everything or, with `vm`, of one VM; with `log`, the agent's log too.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn events(&self, vm: Option<&VmName>, log: bool) -> Result<EventStream, ClientError> {
        let vm = vm.map_or_else(String::new, |vm| format!("&vm={vm}"));
        let stream = self.connect().await?;
        // The host's name is not used, the connection being there already.
        let request = format!("ws://host-agent/events?log={log}{vm}").into_client_request();
        let mut request = request.map_err(|error| ClientError::Http(error.to_string()))?;
        if let Some(value) = self.authorization() {
            let value = value.parse().map_err(|_| ClientError::Token)?;
            request.headers_mut().insert(header::AUTHORIZATION, value);
        }
        let opened = tokio_tungstenite::client_async(request, stream);
        let opened = timeout(Duration::from_secs(ANSWER_S_MAX), opened).await.map_err(|_| ClientError::TimedOut)?;
        match opened {
            Ok((stream, _)) => Ok(EventStream(stream)),
            Err(tungstenite::Error::Http(answer)) => {
                let problem = serde_json::from_slice(answer.body().as_deref().unwrap_or_default());
                Err(ClientError::Problem(problem.map_err(ClientError::Json)?))
            }
            Err(error) => Err(ClientError::Http(error.to_string())),
        }
    }

    fn authorization(&self) -> Option<String> {
        self.token.as_ref().map(|token| format!("Bearer {token}"))
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        UnixStream::connect(&self.socket).await.map_err(|source| match source.kind() {
            io::ErrorKind::PermissionDenied => ClientError::Forbidden(self.socket.clone()),
            _ => ClientError::NotRunning { path: self.socket.clone(), source },
        })
    }

    async fn exchange(&self, method: Method, path: &str, body: Vec<u8>) -> Result<(StatusCode, Bytes), ClientError> {
        let stream = self.connect().await?;
        let broken = |error: hyper::Error| ClientError::Http(error.to_string());
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = tokio::spawn(connection);
        let authorization = self.authorization();
        let request = authorization
            .iter()
            .fold(Request::builder(), |request, value| request.header(header::AUTHORIZATION, value))
            .method(method)
            .uri(path)
            .header(header::HOST, "host-agent")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| ClientError::Http(error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(broken)?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        connection.abort();
        Ok((status, body.map_err(|error| ClientError::Http(error.to_string()))?.to_bytes()))
    }
}

/// Events as they come.
#[derive(Debug)]
pub struct EventStream(WebSocketStream<UnixStream>);

impl EventStream {
    /// The next event; `None` once the agent has ended.
    ///
    /// # Errors
    /// When the connection breaks, or an event is not understood.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            match self.0.next().await {
                Some(Ok(Message::Text(json))) => {
                    return serde_json::from_str(&json).map(Some).map_err(ClientError::Json);
                }
                Some(Ok(Message::Close(_))) | None => return Ok(None),
                Some(Ok(_)) => {}
                // An agent that ends takes its connections with it.
                Some(Err(tungstenite::Error::Protocol(ProtocolError::ResetWithoutClosingHandshake))) => {
                    return Ok(None);
                }
                Some(Err(error)) => return Err(ClientError::Http(error.to_string())),
            }
        }
    }
}
