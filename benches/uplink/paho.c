/* The drain of Eclipse Paho's C client, from memory: PORT COUNT WINDOW BYTES → seconds.
 * scripts/bench compiles it against Debian's libpaho-mqtt3a. */
#include <MQTTAsync.h>
#include <semaphore.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static sem_t connected, window;

static void on_connected(void *context, MQTTAsync_successData5 *response) {
    (void)context, (void)response;
    sem_post(&connected);
}

static void on_acknowledged(void *context, MQTTAsync_successData5 *response) {
    (void)context, (void)response;
    sem_post(&window);
}

static void on_failed(void *context, MQTTAsync_failureData5 *response) {
    fprintf(stderr, "%s failed: %d\n", (char *)context, response->code);
    exit(1);
}

static void must(int code, const char *what) {
    if (code != MQTTASYNC_SUCCESS) {
        fprintf(stderr, "%s: %d\n", what, code);
        exit(1);
    }
}

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(int argc, char **argv) {
    if (argc != 5) {
        fprintf(stderr, "usage: paho PORT COUNT WINDOW BYTES\n");
        return 64;
    }
    int count = atoi(argv[2]), limit = atoi(argv[3]), bytes = atoi(argv[4]);
    char url[64];
    snprintf(url, sizeof url, "tcp://127.0.0.1:%s", argv[1]);
    sem_init(&connected, 0, 0);
    sem_init(&window, 0, (unsigned)limit);

    MQTTAsync client;
    MQTTAsync_createOptions create = MQTTAsync_createOptions_initializer5;
    must(MQTTAsync_createWithOptions(&client, url, "paho", MQTTCLIENT_PERSISTENCE_NONE, NULL, &create), "create");
    MQTTAsync_connectOptions connect = MQTTAsync_connectOptions_initializer5;
    connect.maxInflight = limit;
    connect.onSuccess5 = on_connected;
    connect.onFailure5 = on_failed;
    connect.context = "connect";
    must(MQTTAsync_connect(client, &connect), "connect");
    sem_wait(&connected);

    char *payload = malloc((size_t)bytes);
    memset(payload, 'x', (size_t)bytes);
    double began = now();
    for (int i = 0; i < count; i++) {
        sem_wait(&window);
        MQTTAsync_message message = MQTTAsync_message_initializer;
        message.payload = payload;
        message.payloadlen = bytes;
        message.qos = 1;
        MQTTAsync_responseOptions response = MQTTAsync_responseOptions_initializer;
        response.onSuccess5 = on_acknowledged;
        response.onFailure5 = on_failed;
        response.context = "publish";
        must(MQTTAsync_sendMessage(client, "hark/bench/events/telemetry", &message, &response), "publish");
    }
    for (int i = 0; i < limit; i++) sem_wait(&window);
    printf("%f\n", now() - began);
    return 0;
}
