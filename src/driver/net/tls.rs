//! TLS 1.2 and 1.3 by rustls over `ring`: from certificates in files to an encrypted stream.
//!
//! # Invariants
//! - The broker's certificate is always checked: against `ca_file`, or the system's roots; for the host of
//!   the URL; for its time; against `crl_file` where there is one, then the whole chain, and a
//!   certificate that no list covers is refused.
//! - One [`ClientConfig`] serves all connections until a file changes, so that sessions are resumed:
//!   on a slow line that saves the certificates and, with TLS 1.2, a round trip.
//! - Files (of the system's roots: the date of their bundle) are read before each connection and compared by content; a change needs no restart. What
//!   cannot be used is told once, and the last good content stays in force.
//!
//! # Absent
//! Expiry of revocation lists is not enforced: a list that nobody renewed must not silence an alarm.
//! 0-RTT data: it can be replayed.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use rustls::client::WebPkiServerVerifier;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind, ProtocolVersion, RootCertStore, crypto::ring};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::tls_text::{self, Refused};
use super::{ConnectError, SetupError, Stream, WRITE_MAX};
use crate::driver::host::read_secret;

/// The longest piece that rustls may hold back, sealed, while the socket takes nothing.
const SEALED_MAX: usize = 4 * WRITE_MAX;
/// Where distributions keep the roots in one file: whoever updates them writes it anew.
const SYSTEM_BUNDLES: [&str; 2] =
    ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"];
/// Reads in search of the alert that explains a failed write.
const LAST_READS: usize = 4;

/// What TLS is configured with: PEM files, and what is asked for in the handshake.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Whom to trust; `None`: the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Our certificate and those between it and the CA, ours first.
    pub cert_file: Option<PathBuf>,
    /// Its key: PKCS#8, SEC1 or PKCS#1, not encrypted.
    pub key_file: Option<PathBuf>,
    /// Revocation lists.
    pub crl_file: Option<PathBuf>,
    /// The protocol asked for by ALPN (RFC 7301); empty: none.
    pub alpn: String,
}

/// What has become of files that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilesChange {
    /// They are in force from this connection on.
    InForce,
    /// They cannot be used, and the content before them stays in force.
    Unusable(SetupError),
}

/// The content of the files, and of the system's roots only when they were written: reading them
/// takes as long as a handshake.
#[derive(Hash)]
struct Contents {
    system: [Option<SystemTime>; 2],
    ca: Option<Vec<u8>>,
    cert: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    crl: Option<Vec<u8>>,
}

/// Turns files into a [`ClientConfig`], anew whenever they change.
pub(super) struct Source {
    files: TlsFiles,
    /// A digest of the content in force and what was made of it.
    current: Option<(u64, Arc<ClientConfig>)>,
    /// What is wrong with the content that is not in force.
    complaint: Option<SetupError>,
    change: Option<FilesChange>,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("files", &self.files).finish_non_exhaustive()
    }
}

impl Source {
    pub(super) fn new(files: TlsFiles) -> Self {
        Self { files, current: None, complaint: None, change: None }
    }

    pub(super) fn take_change(&mut self) -> Option<FilesChange> {
        self.change.take()
    }

    /// The configuration for the next connection. Blocks for as long as it takes to read a few
    /// small files.
    ///
    /// # Errors
    /// Nothing usable has ever been there.
    pub(super) fn refresh(&mut self) -> Result<Arc<ClientConfig>, SetupError> {
        let problem = match self.renewed() {
            Ok(config) => {
                if self.complaint.take().is_some() {
                    self.change = Some(FilesChange::InForce);
                }
                return Ok(config);
            }
            Err(problem) => problem,
        };
        let Some((_, config)) = &self.current else { return Err(problem) };
        if self.complaint.as_ref() != Some(&problem) {
            self.complaint = Some(problem.clone());
            self.change = Some(FilesChange::Unusable(problem));
        }
        Ok(Arc::clone(config))
    }

    fn renewed(&mut self) -> Result<Arc<ClientConfig>, SetupError> {
        let contents = Contents::read(&self.files)?;
        let digest = contents.digest();
        if let Some((known, config)) = &self.current
            && *known == digest
        {
            return Ok(Arc::clone(config));
        }
        let config = Arc::new(build(&self.files, &contents)?);
        if self.current.replace((digest, Arc::clone(&config))).is_some() {
            self.change = Some(FilesChange::InForce);
        }
        Ok(config)
    }
}

impl Contents {
    fn read(files: &TlsFiles) -> Result<Self, SetupError> {
        let read = |key, file: &Option<PathBuf>| {
            let content = file.as_deref().map(read_secret).transpose();
            content.map_err(|problem| SetupError { key, problem })
        };
        let written = |file| std::fs::metadata(file).and_then(|file| file.modified()).ok();
        let system = if files.ca_file.is_none() { SYSTEM_BUNDLES.map(written) } else { [None; 2] };
        Ok(Self {
            system,
            ca: read("ca_file", &files.ca_file)?,
            cert: read("cert_file", &files.cert_file)?,
            key: read("key_file", &files.key_file)?,
            crl: read("crl_file", &files.crl_file)?,
        })
    }

    /// Tells contents apart; nobody gains by making two alike who can write these files anyway.
    fn digest(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }
}

/// Names a file in a problem.
fn wrong(key: &'static str, file: Option<&PathBuf>, what: impl fmt::Display) -> SetupError {
    let file = file.map_or(Path::new(""), PathBuf::as_path).display();
    SetupError { key, problem: format!("{file} {what}") }
}

fn build(files: &TlsFiles, contents: &Contents) -> Result<ClientConfig, SetupError> {
    let provider = Arc::new(ring::default_provider());
    let roots = match &contents.ca {
        Some(pem) => given_roots(files, pem)?,
        None => system_roots()?,
    };
    let mut verifier =
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    if let Some(pem) = &contents.crl {
        let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(pem)
            .collect::<Result<_, _>>()
            .map_err(|e| wrong("crl_file", files.crl_file.as_ref(), not_pem(&e)))?;
        if lists.is_empty() {
            let what = "holds no revocation list: \"BEGIN X509 CRL\" is missing";
            return Err(wrong("crl_file", files.crl_file.as_ref(), what));
        }
        verifier = verifier.with_crls(lists);
    }
    let verifier = verifier
        .build()
        .map_err(|e| wrong("crl_file", files.crl_file.as_ref(), format!("is not usable: {e}")))?;
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| wrong("ca_file", None, e))?
        .with_webpki_verifier(verifier);
    let mut config = match (&contents.cert, &contents.key) {
        (Some(cert), Some(key)) => {
            let (chain, key) = (own_chain(files, cert)?, own_key(files, key)?);
            builder.with_client_auth_cert(chain, key).map_err(|e| match e {
                rustls::Error::InconsistentKeys(_) => {
                    let cert = files.cert_file.as_deref().unwrap_or(Path::new("")).display();
                    let what = format!("does not belong to the certificate in {cert}");
                    wrong("key_file", files.key_file.as_ref(), what)
                }
                e => wrong("key_file", files.key_file.as_ref(), format!("is not usable: {e}")),
            })?
        }
        _ => builder.with_no_client_auth(),
    };
    if !files.alpn.is_empty() {
        config.alpn_protocols = vec![files.alpn.clone().into_bytes()];
    }
    Ok(config)
}

fn not_pem(error: &rustls::pki_types::pem::Error) -> String {
    format!("is not PEM: {error}")
}

fn given_roots(files: &TlsFiles, pem: &[u8]) -> Result<RootCertStore, SetupError> {
    let wrong = |what: String| wrong("ca_file", files.ca_file.as_ref(), what);
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| wrong(not_pem(&e)))?;
        let added = roots.add(certificate);
        added.map_err(|e| wrong(format!("holds a certificate that cannot be read: {e}")))?;
    }
    if roots.is_empty() {
        return Err(wrong("holds no certificate: \"BEGIN CERTIFICATE\" is missing".to_owned()));
    }
    Ok(roots)
}

/// What the distribution trusts. Files there that nobody can read are passed over, as everybody does.
fn system_roots() -> Result<RootCertStore, SetupError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let problem = "is empty and this system has no roots either: install ca-certificates, \
                       or name the CA's certificate";
        return Err(SetupError { key: "ca_file", problem: problem.to_owned() });
    }
    Ok(roots)
}

fn own_chain(files: &TlsFiles, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, SetupError> {
    let wrong = |what: String| wrong("cert_file", files.cert_file.as_ref(), what);
    let chain: Vec<_> = CertificateDer::pem_slice_iter(pem)
        .collect::<Result<_, _>>()
        .map_err(|e| wrong(not_pem(&e)))?;
    if chain.is_empty() {
        return Err(wrong("holds no certificate: \"BEGIN CERTIFICATE\" is missing".to_owned()));
    }
    Ok(chain)
}

fn own_key(files: &TlsFiles, pem: &[u8]) -> Result<PrivateKeyDer<'static>, SetupError> {
    let wrong = |what: String| wrong("key_file", files.key_file.as_ref(), what);
    let text = String::from_utf8_lossy(pem);
    if text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED") {
        let what =
            "is encrypted: store it plain, readable for hark only (openssl pkey -in OLD -out NEW)";
        return Err(wrong(what.to_owned()));
    }
    PrivateKeyDer::from_pem_slice(pem).map_err(|e| match e {
        rustls::pki_types::pem::Error::NoItemsFound => {
            wrong("holds no private key: \"BEGIN PRIVATE KEY\" is missing".to_owned())
        }
        e => wrong(not_pem(&e)),
    })
}

/// The handshake with the broker called `host`.
pub(super) async fn connect(
    config: Arc<ClientConfig>,
    files: &TlsFiles,
    host: &str,
    stream: Box<dyn Stream>,
) -> Result<Secured, ConnectError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| {
        ConnectError::Tls(format!("cannot be reached over TLS: `{host}` can be in no certificate"))
    })?;
    let context = tls_text::Context { host: host.to_owned(), files: files.clone() };
    let connecting = TlsConnector::from(config).connect(name, stream);
    match connecting.await {
        Ok(mut inner) => {
            inner.get_mut().1.set_buffer_limit(Some(SEALED_MAX));
            Ok(Secured { inner, context })
        }
        Err(error) => Err(ConnectError::Tls(context.handshake_failed(&error))),
    }
}

/// An encrypted stream that explains itself.
pub(super) struct Secured {
    inner: TlsStream<Box<dyn Stream>>,
    context: tls_text::Context,
}

impl Secured {
    /// Version, and whether the session was resumed.
    pub(super) fn describe(&self) -> String {
        let connection = self.inner.get_ref().1;
        let version = match connection.protocol_version() {
            Some(ProtocolVersion::TLSv1_2) => "TLS 1.2",
            _ => "TLS 1.3",
        };
        match connection.handshake_kind() {
            Some(HandshakeKind::Resumed) => format!("{version}, resumed"),
            _ => version.to_owned(),
        }
    }

    /// Puts the broker's own reason in the place of an error that only shows its effect. A refused
    /// client certificate surfaces here: by then TLS 1.3 counts the handshake as done.
    fn explain(&mut self, cx: &mut Context<'_>, error: io::Error) -> io::Error {
        if let Some(text) = self.context.refused(&error) {
            return io::Error::other(Refused(text));
        }
        // The write failed because the broker hung up; why, it had said before.
        for _ in 0..LAST_READS {
            let mut scratch = [0; 1024];
            let mut scratch = ReadBuf::new(&mut scratch);
            match Pin::new(&mut self.inner).poll_read(cx, &mut scratch) {
                Poll::Ready(Err(earlier)) => {
                    let text = self.context.refused(&earlier);
                    return text.map_or(error, |text| io::Error::other(Refused(text)));
                }
                Poll::Ready(Ok(())) if !scratch.filled().is_empty() => {}
                _ => break,
            }
        }
        error
    }
}

impl AsyncRead for Secured {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match ready!(Pin::new(&mut this.inner).poll_read(cx, buf)) {
            // No close_notify: MQTT has its own ends, so a cut here can pretend nothing.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            Err(error) => Poll::Ready(Err(this.explain(cx, error))),
            Ok(()) => Poll::Ready(Ok(())),
        }
    }
}

impl AsyncWrite for Secured {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        // What was sealed before goes out first, so that no queue builds up inside rustls.
        let flushed = ready!(Pin::new(&mut this.inner).poll_flush(cx));
        if let Err(error) = flushed {
            return Poll::Ready(Err(this.explain(cx, error)));
        }
        let piece = &buf[..buf.len().min(WRITE_MAX)];
        let written = ready!(Pin::new(&mut this.inner).poll_write(cx, piece));
        Poll::Ready(written.map_err(|error| this.explain(cx, error)))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = ready!(Pin::new(&mut this.inner).poll_flush(cx));
        Poll::Ready(flushed.map_err(|error| this.explain(cx, error)))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
